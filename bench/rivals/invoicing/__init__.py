"""A Django app that numbers invoices with django-sequences."""
