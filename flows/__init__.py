"""Wiring: which stage follows which, as a Prefect flow and as commands."""

import os

# Neither Prefect nor its server looks anything up outside.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
