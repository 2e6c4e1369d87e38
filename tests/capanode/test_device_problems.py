import pytest

from capanode.device_problems import (
    ADVICE,
    DeviceProblem,
    failure_of_code,
    failure_of_words,
)


def test_every_problem_has_advice() -> None:
    assert ADVICE.keys() == set(DeviceProblem)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (100, DeviceProblem.NO_DEVICE),
        (304, DeviceProblem.NOT_PERMITTED),
        (803, DeviceProblem.DRIVER_CHANGED),
        (804, DeviceProblem.DRIVER_TOO_OLD),
        (999, DeviceProblem.DRIVER_LOST),
        (12_345, DeviceProblem.UNKNOWN),
    ],
)
def test_the_drivers_numbers_say_what_to_do(code: int, problem: DeviceProblem) -> None:
    failure = failure_of_code(code)
    assert failure.problem is problem
    assert str(code) in failure.reason
    assert failure.advice in str(failure)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("Torch not compiled with CUDA enabled", DeviceProblem.TORCH_WITHOUT_CUDA),
        (
            "The NVIDIA driver on your system is too old (found version 11040). Please update",
            DeviceProblem.DRIVER_TOO_OLD,
        ),
        (
            "CUDA driver version is insufficient for CUDA runtime version",
            DeviceProblem.DRIVER_TOO_OLD,
        ),
        ("Found no NVIDIA driver on your system.", DeviceProblem.DRIVER_MISSING),
        ("No CUDA GPUs are available", DeviceProblem.NO_DEVICE),
        (
            "CUDA unknown error - this may be due to an incorrectly set up environment, e.g. "
            "changing env variable CUDA_VISIBLE_DEVICES after program start.",
            DeviceProblem.DRIVER_LOST,
        ),
        (
            "CUDA error: no kernel image is available for execution on the device\nCUDA kernel",
            DeviceProblem.CARD_TOO_OLD,
        ),
        (
            "Error 803: system has unsupported display driver / cuda driver combination",
            DeviceProblem.DRIVER_CHANGED,
        ),
        ("CUDA error: uncorrectable ECC error encountered", DeviceProblem.CARD_FAILED),
        ("CUDA error: out of memory", DeviceProblem.MEMORY_TAKEN),
        (
            "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
            DeviceProblem.MEMORY_TAKEN,
        ),
        ("CUDA error: OS call failed or operation not supported", DeviceProblem.NOT_PERMITTED),
        ("something else", DeviceProblem.UNKNOWN),
        ("", DeviceProblem.UNKNOWN),
    ],
)
def test_torchs_sentences_say_what_to_do(words: str, problem: DeviceProblem) -> None:
    failure = failure_of_words(words)
    assert failure.problem is problem
    assert failure.reason
    assert "\n" not in failure.reason
