"""A project on the database that SHOP_DATABASE describes, with a second one beside it."""

import json
import os

DATABASES = json.loads(os.environ["SHOP_DATABASE"])
if DATABASES["default"]["ENGINE"].endswith(".mysql"):
    import pymysql

    pymysql.install_as_MySQLdb()
DATABASE_ROUTERS = ["project.routing.Router"]
INSTALLED_APPS = ["duly.frameworks.django", "shop"]
ROOT_URLCONF = "project.urls"
ALLOWED_HOSTS = ["testserver"]
SECRET_KEY = "for tests"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DULY = {
    "app": "shop.messages:app",
    "broker": os.environ["SHOP_BROKER"],
    "lease_ttl": "1s",
    "renew_every": "300ms",
    "send_timeout": "500ms",
}
