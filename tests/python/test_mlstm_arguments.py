"""What the mLSTM's functions say of arguments they cannot take: scalars, types, options, buffers, NaN."""

import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
import trivium
from trivium import mlstm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))
import mlstm_oracle as oracle  # noqa: E402

B, NH, S, DQ, DV, L = 1, 2, 32, 8, 12, 16


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


QUERIES = {
    "matQ": random(B, NH, S, DQ, seed=1),
    "matK": random(B, NH, S, DQ, seed=2),
    "matV": random(B, NH, S, DV, seed=3),
}
SEQUENCE = QUERIES | {"vecI": random(B, NH, S, seed=4), "vecF": random(B, NH, S, seed=5)}
INITIAL = {
    "matC_initial": random(B, NH, DQ, DV),
    "vecN_initial": random(B, NH, DQ),
    "scaM_initial": random(B, NH),
}


def functions():
    """name: (function, its array arguments by name, other arguments)"""
    out = mlstm.chunkwise_fw(
        **SEQUENCE, **INITIAL, CHUNK_SIZE=L, return_all_states=True, return_last_states=True
    )
    host = lambda t: np.array(t)
    c, n, m = (host(t) for t in out.all_states)
    chunk, whole = {"CHUNK_SIZE": L}, (B, NH, S // L, L)
    log_f = oracle.log_sigmoid(SEQUENCE["vecF"]).astype(np.float32)
    per_chunk = {
        "vecB": np.cumsum(log_f.reshape(whole), -1, dtype=np.float32),
        "vecI": SEQUENCE["vecI"].reshape(whole),
    }
    known = {
        "vecN_out": host(out.vecN_out), "vecM_out": host(out.vecM_out), "matDeltaH": random(B, NH, S, DV),
    }  # fmt: skip
    last = {"matDeltaC_last": random(B, NH, DQ, DV), "vecDeltaN_last": random(B, NH, DQ)}
    states = {"matC_states": c, "vecN_states": n, "scaM_states": m}
    path = {"matH": host(out.matH), "vecNt": host(out.vecN_out)}
    after = mlstm.recurrent_bw_dC(
        SEQUENCE["matQ"], log_f, m, **known, CHUNK_SIZE=L, grad_mode="exact", **path
    )
    gradients = {
        "matDeltaC_states": host(after.matDeltaC_states),
        "vecDeltaN_states": host(after.vecDeltaN_states),
    }
    exact = chunk | {"grad_mode": "exact"}
    token = {name: np.ascontiguousarray(a[:, :, 0]) for name, a in SEQUENCE.items()}
    state = dict(zip(("matC", "vecN", "scaM"), (a.copy() for a in INITIAL.values())))
    part_initial = dict(zip(("matC_initial", "vecN_initial", "scaMinter_initial"), INITIAL.values()))
    part_states = {"matC_states": c, "vecN_states": n, "scaMinter_states": m}
    kv = {name: QUERIES[name] for name in ("matK", "matV")}
    gates = {"vecF": log_f, "vecI": SEQUENCE["vecI"]}
    dc_arguments = {"matQ": SEQUENCE["matQ"], "vecF": log_f, "scaM_states": m} | known | last | path
    dqkv_arguments = QUERIES | gates | states | known | gradients
    return {
        "chunkwise_fw": (mlstm.chunkwise_fw, SEQUENCE | INITIAL, chunk),
        "chunkwise_bw": (
            mlstm.chunkwise_bw,
            SEQUENCE | INITIAL | known | last | states | {"vecNt": path["vecNt"]},
            chunk,
        ),
        "recurrent_sequence": (mlstm.recurrent_sequence, SEQUENCE | INITIAL, {}),
        "recurrent_step": (mlstm.recurrent_step, token | state, {}),
        "recurrent_fw_C": (mlstm.recurrent_fw_C, kv | per_chunk | part_initial | part_states, chunk),
        "parallel_fw_H": (mlstm.parallel_fw_H, QUERIES | part_states | per_chunk, chunk),
        "recurrent_bw_dC": (mlstm.recurrent_bw_dC, dc_arguments, exact),
        "parallel_bw_dQKV": (mlstm.parallel_bw_dQKV, dqkv_arguments, exact),
    }


FUNCTIONS = functions()
ARGUMENTS = [(name, argument) for name, (_, arrays, _) in FUNCTIONS.items() for argument in arrays]


def fresh(arrays):
    return {name: a.copy() for name, a in arrays.items()}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_arguments_below_are_accepted(name):
    function, arrays, rest = FUNCTIONS[name]
    function(**fresh(arrays), **rest)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
@pytest.mark.parametrize("scalar", [np.float32(1), np.array(1, np.float32)])
def test_a_scalar_is_no_array_and_not_absent(name, argument, scalar):
    function, arrays, rest = FUNCTIONS[name]
    with pytest.raises(trivium.InvalidArgument) as error:
        function(**(fresh(arrays) | {argument: scalar}), **rest)
    said = str(error.value)
    # A sequence's initial state becomes the state that is updated.
    names = (argument, argument.removesuffix("_initial"))
    assert any(f"{name} is [], expected [" in said for name in names), said
    assert "\n" not in said


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_an_array_of_another_shape_or_type_is_named(name, argument):
    function, arrays, rest = FUNCTIONS[name]
    right = arrays[argument]
    for wrong in (right[..., :-1].copy(), right[None], right.astype(np.float64), right.astype(np.int32)):
        with pytest.raises(trivium.InvalidArgument) as error:
            function(**(fresh(arrays) | {argument: wrong}), **rest)
        said = str(error.value)
        assert "expected" in said and "\n" not in said
        # matK is compared with matQ, matDeltaH with matV: the other one may be the one that is named.
        assert any(other in said for other in (argument, argument.removesuffix("_initial"), "matK", "matV",
                                               "matC_states", "vecI", "matDeltaC_last", "matC",
                                               "matDeltaH")), (argument, said)  # fmt: skip


def test_buffers_are_checked_and_receive_the_states():
    function, arrays, rest = FUNCTIONS["recurrent_fw_C"]
    names = ("matC_states", "vecN_states", "scaMinter_states")
    arguments = {n: a for n, a in arrays.items() if n not in names}
    want = function(**arguments, **rest)
    for name, result in zip(names, want):
        buffer = np.full(result.shape, np.nan, np.float32)
        function(**arguments, **{name: buffer}, **rest)
        np.testing.assert_array_equal(buffer, result)
        frozen = buffer.copy()
        frozen.setflags(write=False)
        for wrong, word in ((frozen, "read-only"), (buffer.repeat(2, -1)[..., ::2], "contiguous")):
            with pytest.raises(trivium.InvalidArgument, match=f"recurrent_fw_C: {name} .*{word}"):
                function(**arguments, **{name: wrong}, **rest)
        with pytest.raises(trivium.InvalidArgument, match=f"recurrent_fw_C: {name} .*list"):
            function(**arguments, **{name: buffer.tolist()}, **rest)


WRONG_OPTIONS = [
    ("CHUNK_SIZE", 16.0), ("CHUNK_SIZE", "16"), ("CHUNK_SIZE", None), ("CHUNK_SIZE", True), ("NUM_CHUNKS", 2.0),
    ("EPS", "x"), ("EPS", None), ("qk_scale", "x"), ("qk_scale", np.ones(2)), ("m_floor", "x"),
    ("normalize", "x"), ("check_finite", 2), ("sigmoid_input_gate", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        (name, option, value)
        for name, (function, _, _) in FUNCTIONS.items()
        for option, value in WRONG_OPTIONS
        if option in inspect.signature(function).parameters
    ],
)
def test_options_of_a_wrong_type_get_one_sentence(name, option, value):
    function, arrays, rest = FUNCTIONS[name]
    with pytest.raises(TypeError) as error:
        function(**fresh(arrays), **(rest | {option: value}))
    said = str(error.value)
    assert f"mlstm.{name}: {option} is " in said and ", expected " in said and "\n" not in said


def test_a_chunk_size_beyond_64_bits_and_a_grad_mode_that_is_no_text_are_refused():
    with pytest.raises(trivium.InvalidArgument, match="expected an integer of 64 bits"):
        mlstm.chunkwise_fw(**SEQUENCE, CHUNK_SIZE=2**70)
    function, arrays, rest = FUNCTIONS["chunkwise_bw"]
    with pytest.raises(trivium.InvalidArgument, match="grad_mode is 3, expected"):
        function(**fresh(arrays), **rest, grad_mode=3)


@pytest.mark.parametrize(
    ("name", "argument"),
    [pair for pair in ARGUMENTS if pair[0] in ("chunkwise_fw", "chunkwise_bw", "recurrent_sequence", "recurrent_step")],
)  # fmt: skip
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_check_finite_names_the_argument_and_the_element(name, argument, value):
    function, arrays, rest = FUNCTIONS[name]
    bad = arrays[argument].copy()
    bad.flat[1] = value
    given = fresh(arrays) | {argument: bad}
    if value == -np.inf and argument in ("scaM_initial", "scaM", "vecM_out", "scaM_states"):
        function(**given, **rest, check_finite=True)  # an empty state
        return
    with pytest.raises(trivium.InvalidArgument) as error:
        function(**given, **rest, check_finite=True)
    said = str(error.value)
    names = (argument, argument.removesuffix("_initial"))
    assert any(f"{name} holds {value} at element 1" in said for name in names), said


def test_published_names_of_backward_arguments_are_taken():
    new = {"CHUNK_SIZE": "chunk_size", "NUM_CHUNKS": "num_chunks", "scaM_states": "scaM_inter"}
    new |= {"vecM_out": "vecM_combine", "EPS": "eps"}
    for name in ("recurrent_bw_dC", "parallel_bw_dQKV"):
        function, arrays, rest = FUNCTIONS[name]
        alias = getattr(mlstm, f"_mlstm_chunkwise__{name}")
        arguments = arrays | rest | {"NUM_CHUNKS": 2, "EPS": 1e-3}
        want = function(**arguments)
        got = alias(**{new.get(key, key): value for key, value in arguments.items()})
        for a, b in zip(got, want):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a, b)
        with pytest.raises(TypeError, match="chunk_size is another name of CHUNK_SIZE, and both are given"):
            alias(**arguments, chunk_size=16)
        with pytest.raises(trivium.InvalidArgument, match="NUM_CHUNKS is 3, but 32 tokens"):
            alias(**(arguments | {"NUM_CHUNKS": 3}))


def test_a_step_takes_m_in_the_shape_torch_functions_return():
    function, arrays, _ = FUNCTIONS["recurrent_step"]
    flat, column = fresh(arrays), fresh(arrays)
    column["scaM"] = column["scaM"][..., None]
    np.testing.assert_array_equal(function(**flat), function(**column))
    np.testing.assert_array_equal(flat["scaM"], column["scaM"][..., 0])
    assert not np.array_equal(flat["scaM"], arrays["scaM"])
