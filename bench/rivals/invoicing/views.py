"""The one view: the next number and its invoice in one transaction, as django-sequences advises."""

from __future__ import annotations

import json
import uuid

from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods
from sequences import get_next_value

from rivals.documents import BEARER, document, now_ms
from rivals.invoicing.models import Invoice


@csrf_exempt  # type: ignore[untyped-decorator]  # Django brings no types
@require_http_methods(["PUT"])  # type: ignore[untyped-decorator]
def put_entry(request: HttpRequest, series: uuid.UUID, entry: uuid.UUID) -> HttpResponse:
    """Issues the next number, or answers what the id was issued."""
    if request.headers.get("Authorization") != BEARER:
        return HttpResponse(status=401)
    meta = json.loads(request.body)["meta"]
    try:
        with transaction.atomic():
            number = get_next_value(str(series))
            invoice = Invoice.objects.create(series=series, number=number, id=entry, meta=meta, created_ms=now_ms())
    except IntegrityError:
        invoice = Invoice.objects.get(series=series, id=entry)
    return JsonResponse(document(str(series), str(entry), invoice.number, invoice.meta, invoice.created_ms))


urlpatterns = [path("sequence/v1/series/<uuid:series>/entries/<uuid:entry>", put_entry)]
