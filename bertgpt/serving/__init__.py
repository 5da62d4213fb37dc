"""The HTTP API: `bertgpt serve`. The packages that it needs are those of the extra [serve]."""
