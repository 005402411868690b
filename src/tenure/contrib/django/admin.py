"""The admin: jobs with their ledger, to look at, and two actions, which the store decides."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db import connections, transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.timezone import is_aware, localtime

from tenure import InvalidInput, Tenure, TenureError
from tenure.contrib.django.databases import backends
from tenure.contrib.django.models import Job, Transition
from tenure.rules.search import Filter
from tenure.values.names import MAX_LABEL_LENGTH

MAX_COUNTED = 10_000
"""Rows that a page looks at to say how many there are, and which queues and types."""
MAX_CHANGED = 1_000
"""Jobs that one action changes, and that a filter shows. The dashboard changes all that match, in
batches."""
MAX_REFUSALS = 5
"""Refusals that are shown one by one."""
MORE = "These are the newest jobs that match: older ones were not searched."
FILTERS = {"status__exact": "status", "queue": "queue", "type": "type"}
"""What a list may be filtered by -> the field of the store's filter."""


def _app() -> Tenure:
    found: Tenure = backends()[0].app
    return found


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts no further than a person turns pages: to count millions takes seconds."""

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list[:MAX_COUNTED]
        return int(rows.count())


class NameFilter(admin.SimpleListFilter):
    """Offers the names that the newest jobs have in a column: to find all is to read all jobs."""

    parameter_name: str

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        newest = Job.objects.order_by("-id").values_list(self.parameter_name)[:MAX_COUNTED]
        return [(name, name) for (name,) in sorted(set(newest))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(**{self.parameter_name: self.value()}) if self.value() else queryset


class QueueFilter(NameFilter):
    title = parameter_name = "queue"


class TypeFilter(NameFilter):
    title = parameter_name = "type"


class Found(ChangeList):
    """A list whose filters the store applies: few of them have an index."""

    def get_queryset(
        self, request: HttpRequest, exclude_parameters: list[str | None] | None = None
    ) -> QuerySet[Any]:
        listed = super().get_queryset(request, exclude_parameters)
        chosen = request.POST.getlist(ACTION_CHECKBOX_NAME)
        if chosen and request.POST.get("select_across", "0") == "0":
            return listed.filter(pk__in=chosen)  # new jobs may have come before these meanwhile
        given: Any = {FILTERS[name]: request.GET[name] for name in FILTERS if name in request.GET}
        if self.query or not given:
            return listed
        try:
            newest, all_searched = _app().core.newest_ids(Filter(**given), MAX_CHANGED)
        except InvalidInput as error:
            raise IncorrectLookupParameters(error) from error
        if not all_searched and request.method == "GET":
            messages.info(request, MORE)
        return listed.filter(pk__in=newest)


class ReadOnly:
    """An admin page on which rows cannot be added, changed or deleted."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    has_change_permission = has_delete_permission = has_add_permission


def preformatted(text: str | None) -> str:
    """Return a text as HTML that keeps its line breaks and spaces; a dash for None."""
    html = '<pre style="margin: 0; white-space: pre-wrap">{}</pre>'
    return "-" if text is None else format_html(html, text)


def indented(document: str | None) -> str:
    """Return a JSON document without what is redacted, laid out."""
    if document is not None:
        shown = json.loads(_app().core.redaction.document(document))
        document = json.dumps(shown, indent=2, ensure_ascii=False)
    return preformatted(document)


def without_secrets(error: str | None, job: Job) -> str:
    """Return an error of a job without what is redacted, laid out."""
    hide = _app().core.redaction.hider(job.payload, job.result)
    return preformatted(error and hide(error))


def precise(time: datetime) -> str:
    """Return a time with its milliseconds, in the time zone of the admin."""
    return f"{localtime(time) if is_aware(time) else time:%Y-%m-%d %H:%M:%S.%f}"[:-3]


class History(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    """The part of the ledger that is about one job."""

    model = Transition
    verbose_name_plural = "history"
    ordering = ("seq",)
    fields = readonly_fields = ("time", "target", "attempt", "actor", "reason", "error")
    extra = 0

    def time(self, transition: Transition) -> str:
        return precise(transition.at)

    def error(self, transition: Transition) -> str:
        return without_secrets(transition.detail, transition.job)


class JobAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """Jobs, newest first."""

    list_display = ("type", "queue", "status", "tries", "created_at", "finished_at")
    list_filter = ("status", QueueFilter, TypeFilter)
    list_per_page = 50
    search_fields = ("id", "idempotency_key")
    search_help_text = "The id or the idempotency key of a job"
    ordering = ("-id",)
    sortable_by = ()
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # they count all jobs, once for each name
    paginator = BoundedPaginator
    actions = ("retry", "cancel")
    inlines = (History,)
    fields = readonly_fields = (
        *("id", "type", "queue", "status", "tries", "priority", "created_at", "run_at"),
        *("started_at", "finished_at", "worker", "idempotency_key"),
        *("arguments", "returned", "error"),
    )

    @admin.display(description="attempts")
    def tries(self, job: Job) -> str:
        return f"{job.attempts} of {max(job.max_retries, 1)}"

    @admin.display(description="payload")
    def arguments(self, job: Job) -> str:
        return indented(job.payload)

    @admin.display(description="result")
    def returned(self, job: Job) -> str:
        return indented(job.result)

    @admin.display(description="last error")
    def error(self, job: Job) -> str:
        return without_secrets(job.last_error, job)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        if not search_term:
            return queryset, False
        found = Q(idempotency_key=search_term)
        with suppress(ValueError):
            found |= Q(pk=uuid.UUID(search_term))
        return queryset.filter(found), False

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return Found

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Return whether a list may be filtered so: not by what would read all jobs."""
        return lookup in FILTERS

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Return whether a user may retry and cancel: the permission to change jobs."""
        user: Any = request.user
        return bool(user.has_perm("tenure.change_job"))

    @admin.action(description="Retry", permissions=["operate"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Run failed jobs again."""
        self._change(request, queryset, "retry")

    @admin.action(description="Cancel", permissions=["operate"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Cancel jobs that are not settled."""
        self._change(request, queryset, "cancel")

    def _change(self, request: HttpRequest, queryset: QuerySet[Any], verb: str) -> None:
        """Ask the store for each job, on Django's connection: a request may be a transaction."""
        done, refusals = 0, []
        for key in queryset.values_list("pk", flat=True)[:MAX_CHANGED]:
            try:
                with transaction.atomic(using=queryset.db):
                    act = getattr(_app().within(connections[queryset.db]), verb)
                    actor = f"user:{request.user.get_username()}"
                    act(str(key), actor=actor[:MAX_LABEL_LENGTH])
                done += 1
            except TenureError as error:
                refusals.append(str(error))
        if done:
            self.message_user(request, f"{verb}: {done} done", messages.SUCCESS)
        for refusal in refusals[:MAX_REFUSALS]:
            self.message_user(request, refusal, messages.WARNING)
        if more := len(refusals[MAX_REFUSALS:]):
            self.message_user(request, f"{more} more were refused", messages.WARNING)


with suppress(ImportError):  # Django 6.1 has actions on the page of an object, too
    from django.contrib.admin import ActionLocation

    for action in (JobAdmin.retry, JobAdmin.cancel):
        action.locations = list(ActionLocation)  # type: ignore[attr-defined]
if backends():  # settings of tests may have another one
    admin.site.register(Job, JobAdmin)
