"""One text in, one verdict out: the heuristics chain in the chosen counting.

Both modes stop at the first rule that fails. In mode `dclm` addresses in the text go first.
Chinese text, by its language or by its characters, is judged by the variants that take characters
for words.
"""

from dataclasses import replace

from fivefold.data.curate.character import is_chinese
from fivefold.data.curate.config import HeuristicsConfig
from fivefold.data.curate.datatrove import judge_in_datatrove
from fivefold.data.curate.dclm import judge_in_dclm
from fivefold.data.curate.line_edit import remove_addresses
from fivefold.data.curate.verdict import Verdict


def judge(text: str, config: HeuristicsConfig, lang: str = "") -> Verdict:
    """Apply the chain; `lang` is the language if it is known."""
    chinese = is_chinese(text, lang)
    if config.mode == "datatrove":
        return judge_in_datatrove(text, config, chinese=chinese)
    cleaned, addresses = remove_addresses(text)
    verdict = judge_in_dclm(cleaned, config, chinese=chinese)
    return replace(verdict, edits=(*addresses, *verdict.edits)) if verdict.is_kept else verdict
