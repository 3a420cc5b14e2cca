"""The page of a run: real sentences with the words that went, and before which layer."""

from typing import Any

import jinja2

TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.7 system-ui, sans-serif; color: #1a1a1a }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } .note { color: #555 } .example { border-top: 1px solid #ddd; padding: .8rem 0 }
.answer { font-size: .85rem; color: #555 } .wrong { color: #a40000 } .legend span { margin-right: .4rem }
.gone { text-decoration: line-through }
span.token { padding: 0 .15em; border-radius: .2em; white-space: nowrap }
sub { font-size: .65em; text-decoration: none; display: inline-block }
</style>
<h1>{{ title }}</h1>
{% if record.sample %}<p class="note">Sample data.</p>{% endif %}
<p class="note">Pruning: {{ record.pruning or "none" }}. The first examples of the dev set. What is struck
through was removed before the layer named beside it.</p>
<p class="legend">
{% for layer in record.pruned_layers %}
<span class="token" style="background:{{ colours[layer] }}">dropped before {{ layer }}</span>
{% endfor %}
</p>
{% for example in record.shown %}
<div class="example">
{% for sentence in example.sentences %}
{% if not loop.first %} &nbsp;|&nbsp; {% endif %}
{% for word, layer in zip(sentence.words, sentence.dropped) %}
{% if layer is none %}
<span class="token">{{ word }}</span>
{% else %}
<span class="token" style="background:{{ colours[layer] }}"><span class="gone">{{ word }}</span>
{%- if colours | length > 1 %}<sub>{{ layer.split()[-1] }}</sub>{% endif %}</span>
{% endif %}
{% endfor %}
{% endfor %}
<div class="answer{{ "" if example.right else " wrong" }}">
answer: {{ example.answer }} · label: {{ example.label }}</div>
</div>
{% endfor %}
</html>
"""


def sentence_page(record: dict[str, Any]) -> str:
    """An HTML page of the sentences in `record["shown"]`. Light where a token goes early, dark where late."""
    layers = record["pruned_layers"]
    steps = max(1, len(layers) - 1)
    colours = {layer: f"hsl(18 75% {91 - 21 * i / steps:.0f}%)" for i, layer in enumerate(layers)}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    title = f"{record['task']}, {record['method']}, seed {record['seed']}"
    return environment.from_string(TEMPLATE).render(record=record, title=title, colours=colours, zip=zip)
