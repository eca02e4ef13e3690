"""What the benchmark's profile makes of what perf prints."""

from collections import Counter

import pytest

from benchmarks import profiled
from benchmarks.profiled import Look

PRINTED = """\
python  1526.100000:
           1a696 ZSTD_encodeSequences_bmi2 (/venv/zstandard/backend_c.so)

swapper  1526.200000:
    ffffffff81 pv_native_safe_halt ([kernel.kallsyms])

CPU 0/KVM  1527.300000:
"""


def test_looks_are_read_with_their_time_and_calls() -> None:
    assert list(profiled.parse(PRINTED.splitlines(keepends=True))) == [
        Look(1526.1, "python", ("1a696 ZSTD_encodeSequences_bmi2 (/venv/zstandard/backend_c.so)",)),
        Look(1526.2, "swapper", ("ffffffff81 pv_native_safe_halt ([kernel.kallsyms])",)),
        Look(1527.3, "CPU 0/KVM", ()),
    ]


@pytest.mark.parametrize(
    ("program", "frames", "kind"),
    [
        ("python", ["ZSTD_compressBlock_fast (zstandard/backend_c.so)"], profiled.COMPRESSING),
        ("python", ["HUF_decompress4X1 (zstandard/backend_c.so)"], profiled.DECOMPRESSING),
        ("python", ["ZSTD_buildFSETable_body (zstandard/c.so)"], profiled.DECOMPRESSING),
        ("python", ["hash_many_avx512 (blake3/blake3.so)"], profiled.HASHING),
        ("python", ["ossl_aes_gcm_encrypt (cryptography/_rust.abi3.so)"], profiled.CIPHER),
        ("python", ["_PyEval_EvalFrameDefault (libpython3.11.so.1.0)"], profiled.INTERPRETER),
        ("python", ["copy ([kernel.kallsyms])", "__x64_sys_recvfrom ()"], profiled.RECEIVING),
        ("python", ["clear_page ([kernel.kallsyms])", "exc_page_fault ()"], profiled.MEMORY),
        ("python", ["lock ([kernel.kallsyms])", "do_syscall_64 ()"], profiled.OTHER),
        ("python", [], profiled.OTHER),
        ("qemu-nbd", ["copy ([kernel.kallsyms])"], profiled.SOURCE),
        ("swapper", ["halt ([kernel.kallsyms])"], profiled.IDLE),
        ("kworker/0:1", ["write ([kernel.kallsyms])"], profiled.REST),
    ],
)
def test_what_a_core_was_at_is_told_by_library_and_call(
    program: str, frames: list[str], kind: str
) -> None:
    assert Look(1.0, program, tuple(frames)).kind == kind


def test_the_table_has_seconds_for_each_kind() -> None:
    lines = profiled.to_lines(
        Counter({profiled.COMPRESSING: 2500}), Counter({profiled.COMPRESSING: 2000})
    )
    assert len(lines) == 2 + len(profiled.KINDS)
    assert lines[2] == f"| {profiled.COMPRESSING} | 2.50 | 2.00 |"
