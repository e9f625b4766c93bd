"""The chat template in jinja: what other engines read from `chat_template.jinja`.

`template` is the source of the format; this text renders the same characters, which a test asserts
with transformers. Variables are GLM's own: `enable_thinking` (false closes the thinking block in
the generation prompt) and `clear_thinking` (false keeps the reasoning of earlier turns).
"""

CHAT_TEMPLATE = """\
[gMASK]<sop>
{%- set last = namespace(user=-1) -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- set keep_all = clear_thinking is defined and not clear_thinking -%}
{%- for message in messages -%}
  {%- set content = message.content or '' -%}
  {%- if content is not string -%}
    {{- raise_exception('This template renders text content only.') -}}
  {%- endif -%}
  {%- if message.role == 'system' -%}
    {{- '<|system|>' + content -}}
  {%- elif message.role == 'user' -%}
    {{- '<|user|>' + content -}}
  {%- elif message.role == 'assistant' -%}
    {%- set keep = keep_all or loop.index0 > last.user -%}
    {{- '<|assistant|>' -}}
    {%- if keep and message.reasoning_content is string -%}
      {{- '<think>' + message.reasoning_content -}}
    {%- endif -%}
    {{- '</think>' + content.strip() -}}
  {%- elif message.role in ['observation', 'tool'] -%}
    {%- if loop.first or loop.previtem.role not in ['observation', 'tool'] -%}
      {{- '<|observation|>' -}}
    {%- endif -%}
    {{- '<tool_response>' + content + '</tool_response>' -}}
  {%- else -%}
    {{- raise_exception('Unknown role: ' + message.role) -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|assistant|>' -}}
  {%- if enable_thinking is defined and not enable_thinking -%}
    {{- '</think>' -}}
  {%- else -%}
    {{- '<think>' -}}
  {%- endif -%}
{%- endif -%}
"""
