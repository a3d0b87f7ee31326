"""What the simulated line shows: the same frame for ever, believable variation, defects with honest masks."""

import csv
import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from lineward.drivers.simulation.dataset import write_dataset
from lineward.drivers.simulation.defects import Defect
from lineward.drivers.simulation.products import PRODUCTS
from lineward.drivers.simulation.scene import BATCH_PARTS, Renderer, View, truth

SMALL = {"width": 320, "height": 256}


@pytest.fixture(scope="module", params=sorted(PRODUCTS))
def renderer(request):
    return Renderer(request.param, seed=11, **SMALL)


def digest(renderer, indices):
    total = hashlib.sha256()
    for index in indices:
        total.update(renderer.render(index)[0].tobytes())
        total.update(renderer.mask(index).tobytes())
    return total.hexdigest()


def test_frame_is_a_pure_function_of_its_index(renderer):
    """A frame does not depend on what was drawn before it."""
    wanted = [renderer.render(i)[0] for i in (5, 45, 0, 5, 90)]
    renderer.render(200, defect="crack")
    other = Renderer(renderer.product, seed=11, **SMALL)
    for i, image in zip((90, 0, 45, 5), (wanted[4], wanted[2], wanted[1], wanted[3]), strict=True):
        assert np.array_equal(other.render(i)[0], image)
    assert np.array_equal(wanted[0], wanted[3])


def test_a_fresh_process_draws_the_same_bits(renderer):
    """The same seed gives the same bytes in another process."""
    code = (
        "import hashlib, sys; from lineward.drivers.simulation.scene import Renderer\n"
        f"r = Renderer({renderer.product!r}, seed=11, width=320, height=256); t = hashlib.sha256()\n"
        "for i in (3, 41, 7):\n    t.update(r.render(i)[0].tobytes()); t.update(r.mask(i).tobytes())\n"
        "print(t.hexdigest())"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == digest(renderer, (3, 41, 7))


def test_seed_and_product_change_everything(renderer):
    """Another seed is another line: other pixels, other truths."""
    other = Renderer(renderer.product, seed=12, **SMALL)
    assert not np.array_equal(other.render(0)[0], renderer.render(0)[0])
    first = [renderer.truth(i) for i in range(300)]
    assert [t.defect_type for t in first] != [other.truth(i).defect_type for i in range(300)]


def test_pictures_are_exposed_as_a_camera_engineer_would(renderer):
    """Metal in the upper middle of the range, belt dark, next to nothing saturated; batches differ in tone."""
    tones = []
    for batch in range(6):
        image, _ = renderer.render(batch * BATCH_PARTS, defect="none")
        assert image.dtype == np.uint8
        assert image.shape == (256, 320)
        assert image.flags.c_contiguous
        metal = image[image > 70]
        tones.append(float(metal.mean()))
        assert 100 < tones[-1] < 200
        assert np.percentile(image, 2) < 35
        assert np.mean(image == 255) < 0.01
        assert metal.std() > 8
    assert max(tones) - min(tones) > 2


def test_chance_gives_the_asked_share_of_every_defect():
    """Defects come at the asked rate, in all six types, in graded severity."""
    known = [truth(i, product="bracket", seed=1, defect_rate=0.2) for i in range(3000)]
    bad = [t for t in known if not t.good]
    assert 0.17 < len(bad) / len(known) < 0.23
    assert {t.defect_type for t in bad} == set(Defect)
    assert min(t.severity for t in bad) < 0.2
    assert max(t.severity for t in bad) > 0.9
    assert all(t.severity == 0 for t in known if t.good)


@pytest.mark.parametrize("defect", list(Defect))
@pytest.mark.parametrize("severity", [0.5, 1.0])
def test_a_defect_is_visible_inside_its_mask_and_nowhere_else(renderer, defect, severity):
    """With and without the defect, a frame differs visibly inside the mask and not at all outside of it."""
    for index in (2, 53, 121):
        good, _ = renderer.render(index, defect="none")
        bad, known = renderer.render(index, defect=defect, severity=severity)
        mask = renderer.mask(index, defect=defect, severity=severity)
        assert (known.defect_type, known.severity) == (defect, severity)
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}
        change = cv2.absdiff(good, bad)
        around = cv2.dilate(mask, np.ones((7, 7), np.uint8)) > 0
        assert change[~around].max() <= 3
        assert np.percentile(change[mask > 0], 90) >= 8
        assert (mask > 0).mean() < 0.12


@pytest.mark.parametrize("defect", list(Defect))
def test_severity_is_graded(renderer, defect):
    """A more severe defect changes the picture more; a slight one hardly."""
    change = []
    for severity in (0.15, 0.5, 1.0):
        total = 0.0
        for index in range(6):
            good, _ = renderer.render(index, defect="none")
            bad, _ = renderer.render(index, defect=defect, severity=severity)
            total += float(cv2.absdiff(good, bad).sum(dtype=np.float64))
        change.append(total)
    assert 0 < change[0] < change[1] < change[2]
    assert change[2] > 4 * change[0]


def test_a_good_part_has_an_empty_mask(renderer):
    """Where there is no defect there is no mask."""
    assert not renderer.mask(0, defect="none").any()


def test_exposure_scales_light_and_saturates():
    """Half the light is half the signal; much more of it saturates at 255."""
    renderer = Renderer("bracket", **SMALL)
    nominal, half, bright = (renderer.render(0, view=View(exposure=e))[0].astype(float) for e in (1, 0.5, 4))
    metal = nominal > 100
    assert np.mean(half[metal] - 3) / np.mean(nominal[metal] - 3) == pytest.approx(0.5, abs=0.02)
    assert np.mean(bright[metal] == 255) > 0.9


def test_gain_amplifies_noise_as_well():
    """Gain is no free light: at the same brightness a short exposure with gain is noisier."""
    renderer = Renderer("bracket", **SMALL)
    clean, noisy = (renderer.render(0, view=view)[0] for view in (View(), View(exposure=0.25, gain=4.0)))
    grain = [np.std(image[:12].astype(float) - cv2.GaussianBlur(image, (0, 0), 1.5)[:12]) for image in (clean, noisy)]
    assert grain[1] > 1.5 * grain[0]
    assert clean.mean() == pytest.approx(noisy.mean(), rel=0.05)


def test_colour_is_rgb():
    """Brass is yellow in RGB order: red above green above blue."""
    image, _ = Renderer("flange", pixel_format="RGB8", **SMALL).render(0)
    assert image.shape == (256, 320, 3)
    red, green, blue = image[image[..., 1] > 100].mean(axis=0)
    assert red > green > blue + 20


@pytest.mark.parametrize(("width", "height"), [(33, 47), (97, 64), (64, 300), (500, 40)])
@pytest.mark.parametrize("product", sorted(PRODUCTS))
def test_odd_sizes_are_drawn(product, width, height):
    """Any picture size works, with every defect."""
    renderer = Renderer(product, width=width, height=height)
    for defect in Defect:
        image, _ = renderer.render(1, defect=defect, severity=1.0)
        assert image.shape == renderer.mask(1, defect=defect, severity=1.0).shape == (height, width)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"product": "gear"}, "no product 'gear'; there are: bracket, flange"),
        ({"width": 8}, "at least 32 x 32"),
        ({"defect_rate": 1.5}, "defect_rate 1.5"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_impossible_scenes_are_refused(options, words):
    """An impossible option is refused with its name and value."""
    with pytest.raises(ValueError, match=words):
        Renderer(**options)


def test_unknown_defects_are_refused(renderer):
    """A defect that does not exist is refused with a list of those which do."""
    with pytest.raises(ValueError, match="no defect 'rust'; there are: none, scratch"):
        renderer.render(0, defect="rust")
    with pytest.raises(ValueError, match="severity 2"):
        renderer.truth(0, defect="dent", severity=2)


def test_dataset_is_what_the_trainer_reads(tmp_path):
    """A data set has the asked counts, a group per batch, and labels that agree with its folders."""
    steps = []
    folder = write_dataset(
        tmp_path / "set", n_good=50, n_defect=14, progress=lambda done, of: steps.append((done, of)), **SMALL
    )
    assert steps[-1] == (64, 64)
    assert len(list((folder / "good").glob("*.png"))) == 50
    assert {path.name for path in (folder / "defect").iterdir()} == set(Defect)
    with (folder / "groups.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert {row["file"] for row in rows} == {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    assert len({row["group"] for row in rows}) == 2
    assert all(row["file"].startswith("good/" if row["label"] == "good" else f"defect/{row['label']}/") for row in rows)
    first = rows[0]
    image = cv2.imread(str(folder / first["file"]), cv2.IMREAD_UNCHANGED)
    index = int(first["file"][-11:-4])
    assert index >= 1_000_000
    assert np.array_equal(image, Renderer(**SMALL).render(index, defect="none")[0])


def test_dataset_never_mixes_with_older_files(tmp_path):
    """A folder with files in it is left alone; an empty one is used."""
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="give a new folder"):
        write_dataset(tmp_path, n_good=1, n_defect=0)
    (tmp_path / "empty").mkdir()
    assert write_dataset(tmp_path / "empty", n_good=1, n_defect=1, **SMALL).is_dir()
