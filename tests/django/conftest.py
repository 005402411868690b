"""The tests of Django: `site` is a project, whose tests run inside Django."""

collect_ignore = ["site"]
