"""The chat template in jinja: what other engines read from `chat_template.jinja`.

`template` is the source of the format; this text renders the same characters, which a test asserts
with transformers over random conversations. Variables are GLM's own: `tools`, `enable_thinking`
(false closes the thinking block in the generation prompt) and `clear_thinking` (false keeps the
reasoning of earlier turns).

Surprise: the same characters are the same ids only while content holds no special token's name.
Engines tokenise the whole rendered string, so that there a user can type `<|system|>`; here not.
"""

import json

TOOLS_BEFORE = (
    "\nThese functions are at your service. Each line between <tools> and </tools> declares one "
    "in JSON.\n<tools>\n"
)
"""What the system block of tools says before the declarations. The words are ours, not GLM-5's."""
_HOW_TO_CALL = (
    "</tools>\nTo call a function, write its name, then the name and the value of each argument. "
    "A string is written as it is, any other value as JSON:\n"
)
CALL_FORM = (
    *(_HOW_TO_CALL, "<tool_call>", "name", "<arg_key>", "key", "</arg_key>"),
    *("<arg_value>", "value", "</arg_value>", "</tool_call>"),
)
"""What it says after them, cut where a special token stands; the form of a call is GLM-5's."""

_TEMPLATE = """\
[gMASK]<sop>
{%- macro text_of(content) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- elif content is iterable and content is not mapping -%}
    {%- for part in content -%}
      {%- if part is string -%}
        {{- part -}}
      {%- elif part is mapping and part.type == 'text' and part.text is string -%}
        {{- part.text -}}
      {%- else -%}
        {{- raise_exception('This template renders text content only.') -}}
      {%- endif -%}
    {%- endfor -%}
  {%- elif content is defined and content is not none -%}
    {{- raise_exception('This template renders text content only.') -}}
  {%- endif -%}
{%- endmacro -%}
{%- if tools -%}
  {{- '<|system|>' + @TOOLS_BEFORE@ -}}
  {%- for tool in tools -%}
    {{- tool | tojson(ensure_ascii=False) -}}
    {{- '\\n' -}}
  {%- endfor -%}
  {{- @CALL_FORM@ -}}
{%- endif -%}
{%- set last = namespace(user=-1) -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- set keep_all = clear_thinking is defined and not clear_thinking -%}
{%- for message in messages -%}
  {%- set content = text_of(message.content) -%}
  {%- if message.role in ['system', 'developer'] -%}
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
    {%- for call in message.tool_calls or [] -%}
      {%- set function = call.function or call -%}
      {%- set arguments = function.arguments or {} -%}
      {%- if arguments is not mapping -%}
        {{- raise_exception('The arguments of a tool call have to be an object.') -}}
      {%- endif -%}
      {{- '<tool_call>' + function.name -}}
      {%- for key, value in arguments.items() -%}
        {{- '<arg_key>' + key + '</arg_key><arg_value>' -}}
        {{- value if value is string else value | tojson(ensure_ascii=False) -}}
        {{- '</arg_value>' -}}
      {%- endfor -%}
      {{- '</tool_call>' -}}
    {%- endfor -%}
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

CHAT_TEMPLATE = _TEMPLATE.replace("@TOOLS_BEFORE@", json.dumps(TOOLS_BEFORE)).replace(
    "@CALL_FORM@", json.dumps("".join(CALL_FORM))
)
"""The text of `chat_template.jinja`."""
