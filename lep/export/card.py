"""The README of a model directory: what it is, how to chat with it, what was checked, and the recipe in full."""

from collections.abc import Mapping
from typing import Any

import yaml

RECIPE_FILE, CARD_FILE = "lep.yaml", "README.md"


def model_card(name: str, facts: Mapping[str, Any], recipe: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """facts: architecture, tokens, rows, tied, dtype, chats. report: what `lep.export.export_model` gives."""
    use = f'write = pipeline("text-generation", model="{name}")\nwrite("...")'
    if facts["chats"]:
        use = f'chat = pipeline("text-generation", model="{name}")\nchat([{{"role": "user", "content": "..."}}])'
    ties = "tied" if facts["tied"] else "apart"
    checks = "\n".join(f"- {check}: {seen}" for check, seen in report["checks"].items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [lep, vocabulary-adaptation]
---
# {name}

An instruct model with a new vocabulary, made by Learned Embedding Propagation (arXiv 2412.21140): embeddings trained on
a base model, carried into its instruct tune. The layers between the tables are the instruct model's own.

- architecture: {facts["architecture"]}
- vocabulary: {facts["tokens"]} tokens, {facts["rows"]} rows, input and output tables {ties}
- weights: {facts["dtype"]}

```python
from transformers import pipeline

{use}
```

Checked before this directory was published:

{checks}

Servers:

{_servers(report["servers"])}

The recipe (also in `{RECIPE_FILE}`):

```yaml
{as_yaml(recipe)}```
"""


def _servers(verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name, verdict in verdicts.items():
        lines.append(f"- {name}: {'ready' if verdict['ready'] else 'needs a hand'} ({verdict['found']})")
        if verdict["remedy"]:
            lines.append(f"  {verdict['remedy']}")
    return "\n".join(lines)


def as_yaml(recipe: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
