"""The order of the stages, as Prefect flows, and the command line."""

import os

# Neither Prefect nor its server sends telemetry.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
