"""From answers to the report: `journal`, `folder`, `summary`, `compare`, `page`."""
