"""Numbers as people read them: 744B parameters, 1.41 GiB, 99.7 GFLOP, 5.2%, 3.4 days."""


def format_count(count: float) -> str:
    """Write a count with three digits and a decimal suffix (K, M, B, T)."""
    return _scaled(count, ("", "K", "M", "B", "T"), 1000)


def format_flops(flops: float) -> str:
    """Write FLOPs with three digits and a decimal prefix."""
    return _scaled(
        flops,
        (" FLOP", " KFLOP", " MFLOP", " GFLOP", " TFLOP", " PFLOP", " EFLOP", " ZFLOP", " YFLOP"),
        1000,
    )


def format_bytes(size: float) -> str:
    """Write bytes with three digits and a binary prefix (KiB is 1024 bytes)."""
    return _scaled(size, (" B", " KiB", " MiB", " GiB", " TiB", " PiB"), 1024)


def format_share(share: float) -> str:
    """Write a share of one as a percentage with one decimal."""
    return f"{100 * share:.1f}%"


def format_duration(seconds: float) -> str:
    """Write a duration in its largest fitting unit, seconds to days."""
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _scaled(value: float, suffixes: tuple[str, ...], base: int) -> str:
    """Divide by `base` until the value has at most three digits before its point."""
    index = 0
    while abs(value) >= 999.5 and index < len(suffixes) - 1:
        value /= base
        index += 1
    digits = 0 if abs(value) >= 99.95 or (index == 0 and value == int(value)) else 1
    if abs(value) < 9.995 and digits:
        digits = 2
    return f"{value:.{digits}f}{suffixes[index]}"
