"""duly's tables and the shop's are on ``default``, the archive on ``other``."""


class Router:
    def db_for_read(self, model, **hints):
        return "other" if model.__name__ == "Archived" else "default"

    db_for_write = db_for_read

    def allow_migrate(self, db, app_label, model_name=None, **hints):
        if app_label == "duly":
            return None  # where the tables belong is what settings.DULY says
        return (db == "other") == (model_name == "archived")
