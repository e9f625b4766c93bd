"""Run every benchmark of `make bench`, each in its own process, and print one line each."""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RUNS = (
    ("train_step.py", "--rows", "8", "--context", "512", "--dtype", "float32"),
    ("train_step.py", "--rows", "8", "--context", "512", "--dtype", "bfloat16"),
    ("train_step.py", "--rows", "1", "--context", "4096", "--dtype", "float32"),
    ("train_step.py", "--rows", "1", "--context", "4096", "--dtype", "bfloat16"),
    ("train_memory.py",),
    ("train_memory.py", "--dtype", "bfloat16"),
    ("decode.py", "--batch", "1"),
    ("decode.py", "--batch", "8"),
    ("selection.py",),
    ("product.py",),
    ("product.py", "--packed", "--rows", "8", "--outputs", "4096"),
    ("newton_schulz.py",),
    ("sparse_attention.py", "--lengths", "2048"),
    ("long_context.py", "--what", "step", "--length", "16384", "--pairs", "3"),
    ("long_context.py", "--what", "step", "--length", "32768", "--pairs", "3"),
    ("long_context.py", "--what", "layer", "--length", "16384", "--pairs", "3"),
    ("long_context.py", "--what", "attention", "--length", "16384", "--pairs", "3"),
    ("long_context.py", "--what", "decode", "--length", "32768"),
    ("curation.py",),
    ("serving.py", "--case", "batch1"),
    ("serving.py", "--case", "batch1_long"),
    ("serving.py", "--case", "batch8"),
    ("serving.py", "--case", "staggered"),
    ("serving.py", "--case", "speculation"),
    ("serving.py", "--case", "multi_turn"),
    ("serving.py", "--case", "http"),
    ("rl_step.py",),
    ("rl_step.py", "--prompt", "128"),
    ("rl_step.py", "--optimizer", "muon"),
    ("distillation_arms.py", "--seconds", "6"),
    ("muon_dist.py",),
    ("schedules.py",),
    ("parallel_overhead.py", "--axis", "dp"),
    ("parallel_overhead.py", "--axis", "pp"),
    ("parallel_overhead.py", "--axis", "pp", "--schedule", "zb_h1"),
)


def main() -> None:
    """Pass further arguments (`--quick`) on to each; exit with 1 if one fails."""
    failed = False
    for script, *arguments in RUNS:
        command = [sys.executable, str(HERE / script), *arguments, *sys.argv[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            failed = True
            print(f"{script} {' '.join(arguments)} FAILED\n{done.stderr[-2000:]}")
            continue
        result = json.loads(done.stdout.strip().splitlines()[-1])
        print(
            f"{result['name']:<34} {result['ratio']:5.2f}x  "
            f"({result['ratio_min']:.2f}-{result['ratio_max']:.2f}, {result['pairs']} pairs)  "
            f"ours {result['ours']:,.0f}  peer {result['peer']:,.0f} {result['unit']}",
            flush=True,
        )
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
