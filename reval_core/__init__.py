"""The work of reval: everything that a run does, without Prefect or MLflow."""
