"""The benchmark of machine text tells each model from people who write the same kind of text."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from fivefold.data.maths.calibration import Calibration, Rate

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "machine_text.py"


class ByLength:
    """Scores a text by its length."""

    calibration = Calibration(2.5, Rate(0, 0, 1.0), {}, 299)

    def score(self, text: str) -> float:
        return float(len(text))


def test_auc_is_taken_against_people_of_the_same_kind():
    spec = spec_from_file_location("machine_text", SCRIPT)
    assert spec
    assert spec.loader
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    human = {"CHAMP, authors": ["aaaa", "bbbb"], "GSM8K, people": ["a", "b"]}
    machine = {"GPT-4": ["cccccc"], "GSM8K, fine-tuned GPT-3": ["cc", "dd"]}
    found = script.measure(ByLength(), human, machine)["found"]
    assert found["GPT-4"]["auc"] == 1
    # Longer than what people write of school problems, shorter than any competition's solution.
    assert found["GSM8K, fine-tuned GPT-3"]["auc"] == 1
