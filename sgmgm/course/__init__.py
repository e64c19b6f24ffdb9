"""The course around the system: what lessons start with, plots, views, exercises, the runner."""

from .start import images, models, preflight, progress, report, workspace

__all__ = ["images", "models", "preflight", "progress", "report", "workspace"]
