"""The entry in INSTALLED_APPS: label ``duly``, whose migrations make duly's tables."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["DulyConfig"]


class DulyConfig(AppConfig):  # type: ignore[misc]  # Django ships no types
    """The application ``duly.frameworks.django``."""

    name = "duly.frameworks.django"
    label = "duly"
    verbose_name = "duly"
    default_auto_field = "django.db.models.BigAutoField"
