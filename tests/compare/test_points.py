import numpy as np
import pytest
from synthetic_runs import write_training

from compare import points
from compare.derived import with_derived
from compare.load import load
from compare.papers import Quantity
from compare.rows import Cell


def arrays_of_gaussian_features(seed=0, K=4, d=6, n=4000, spread=0.5):
    """The arrays a run keeps, computed here from drawn test features, and the features' measured error."""
    rng = np.random.default_rng(seed)
    train = rng.standard_normal((K, d))
    centred = train - train.mean(0)
    basis = np.linalg.svd(centred, full_matrices=False)[2][: K - 1]
    labels = np.repeat(np.arange(K), n)
    features = train[labels] + spread * rng.standard_normal((K * n, d))
    means = np.array([features[labels == k].mean(0) for k in range(K)])
    within = np.array([np.cov((features[labels == k] @ basis.T).T, bias=True) for k in range(K)])
    nearest = np.argmin(((features[:, None] - train) ** 2).sum(-1), axis=1)
    arrays = {"basis": basis, "train/means": train, "test/means": means, "test/within_class": within,
              "test/ncc_correct": (nearest == labels).astype(np.uint8), "test/counts": np.full(K, n)}  # fmt: skip
    return {f"penultimate/{name}": value for name, value in arrays.items()}, float(np.mean(nearest != labels))


def test_the_moments_of_gaussian_features_predict_their_error(tmp_path):
    arrays, error = arrays_of_gaussian_features()
    folder = write_training(tmp_path, seeds=[0], tensors=arrays)
    predicted, measured = points.moment_error(load(folder).cells[folder.name], 0)
    assert measured == pytest.approx(error) and error > 0.01
    assert predicted.gaussian == pytest.approx(error, rel=0.05)
    assert predicted.gaussian <= predicted.union and error <= predicted.cantelli


@pytest.mark.parametrize("spread", [0.6, 0.9, 1.4])
def test_anisotropic_shifted_gaussian_features_err_as_their_moments_say(tmp_path, spread):
    """Covariances that differ by class, test means off the train means: within 20 % of the measured error."""
    torch = pytest.importorskip("torch")
    from empirical.tensors import layer_tensors

    rng = np.random.default_rng(int(100 * spread))
    K, d, n = 5, 12, 800
    means = 2 * rng.standard_normal((K, d)) / np.sqrt(d)
    roots = spread * rng.standard_normal((K, d, d)) / np.sqrt(d)
    shifts = 0.2 * rng.standard_normal((K, d)) / np.sqrt(d)
    labels = np.repeat(np.arange(K), n)
    splits = []
    for shift in (0 * shifts, shifts):
        noise = np.einsum("nij,nj->ni", roots[labels], rng.standard_normal((K * n, d)))
        splits.append((torch.from_numpy((means + shift)[labels] + noise), torch.from_numpy(labels)))
    arrays = {f"penultimate/{key}": value for key, value in layer_tensors(*splits, K).items()}
    table = with_derived(load(write_training(tmp_path, seeds=[0], tensors=arrays)))
    cell = next(iter(table.cells.values()))
    predicted, measured = points.moment_error(cell, 0)
    assert measured > 0.005 and predicted.gaussian == pytest.approx(measured, rel=0.2)
    assert measured <= predicted.cantelli and predicted.gaussian <= predicted.union <= predicted.cantelli
    row = table.where(measure="ncc_error", centres="train", epoch=100)
    assert row["predicted"][0] == predicted.gaussian and "Gaussian" in row["assumption"][0]
    assert table.where(measure="ncc_error_union")["value"][0] == predicted.union
    assert table.where(measure="ncc_error_cantelli")["value"][0] == predicted.cantelli


def test_without_arrays_there_is_no_prediction_and_no_error_over_points(tmp_path):
    folder = write_training(tmp_path, seeds=[0])
    cell = load(folder).cells[folder.name]
    assert points.moment_error(cell, 0) is None and points.arrays_of(points.seed_folder(cell, 0)) == {}
    assert points.classifier_shape(cell) is None and points.sample_size(cell, (0,)) == 0 and points.classes_of(cell, (0,)) is None


def test_damaged_arrays_are_left_out(tmp_path):
    folder = write_training(tmp_path, seeds=[0], tensors={"weight": np.eye(3)})
    path = folder / "seed-0" / "tensors.safetensors"
    cell = load(folder).cells[folder.name]
    assert points.classifier_shape(cell) == (3, 3)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert points.classifier_shape(cell) is None


def test_the_result_says_how_many_test_points_and_classes_there_were():
    cell = Cell("c", "collapse", "nowhere", {}, {}, (0,), {0: {"data": {"test": 797, "counts": [100, 100, 0]}}})
    assert points.sample_size(cell, (0,)) == 797 and points.classes_of(cell, (0,)) == 2


def test_a_share_of_a_group_has_the_error_of_the_groups_size(tmp_path):
    aligned = np.repeat(np.array([1, 0], np.uint8), [40, 360])
    folder = write_training(tmp_path, seeds=[0], tensors={"test/aligned": aligned})
    cell = load(folder).cells[folder.name]
    for measure, size in (("accuracy_aligned", 40), ("accuracy_conflicting", 360), ("attribute_followed", 360)):
        assert points.is_count(measure)
        found = points.sample_error(cell, 0, Quantity(measure, split="test", layer="network"), 0.5)
        assert found == pytest.approx(0.5 / np.sqrt(size), rel=0.06)  # but for the two of each that Agresti and Coull add
