"""The stages as Prefect tasks, Prefect artifacts, and the metrics in MLflow."""
