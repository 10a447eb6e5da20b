"""A Django project as its documentation has it, tuned: no middleware but the common one, connections that stay."""

from __future__ import annotations

import os

SECRET_KEY = "not one"  # noqa: S105 -- nothing is signed
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
INSTALLED_APPS = ["sequences", "rivals.invoicing"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
ROOT_URLCONF = "rivals.invoicing.views"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "bench",
        "USER": "postgres",
        "HOST": os.environ["BENCH_PG_HOST"],
        "CONN_MAX_AGE": None,
        "OPTIONS": {"server_side_binding": True},
    }
}
