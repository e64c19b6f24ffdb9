"""The course around the system: what lessons start with, plots, views, exercises, the runner."""

from .start import models, preflight, progress, report, workspace

__all__ = ["models", "preflight", "progress", "report", "workspace"]
