"""What a configuration that is read again may change, and what has to wait."""

from __future__ import annotations

from lineward.daemon.config import Config
from lineward.daemon.reload import differences, merge

OLD = {
    "camera": {"driver": "simulated", "settings": {"ExposureTime": 2000}},
    "inspection": {"model": "bracket"},
    "recipes": {"other": {"model": "flange", "settings": {"ExposureTime": 4000}}},
}


def config(**sections: object) -> Config:
    return Config.model_validate({**OLD, **sections})


def test_what_can_change_does_and_the_rest_is_named():
    """Rule: thresholds, recipes, deadlines, budgets and log change live; camera, broker and storage need a restart."""
    new = config(
        inspection={"model": "bracket", "deadline_ms": 90},
        recipes={"other": {"model": "flange", "thresholds": {"pass_below": 0.1, "fail_from": 0.9}}},
        log={"level": "DEBUG"},
        review={"keep_per_hour": 5},
        mqtt={"port": 1884},
        storage={"root": "/elsewhere", "max_gb": 5},
    )
    merged, waiting = merge(config(), new)
    assert waiting == ["mqtt.port", "storage.root"]
    assert differences(config(), merged) == [
        "inspection.deadline_ms",
        "log.level",
        "recipes",
        "review.keep_per_hour",
        "storage.max_gb",
    ]
    assert merged.storage.root == config().storage.root
    assert merged.recipes["other"].thresholds == new.recipes["other"].thresholds


def test_another_camera_takes_its_settings_and_models_with_it():
    """Rule: what was written for another camera is not put on the one that runs."""
    new = config(camera={"driver": "folder", "settings": {}}, recipes={}, inspection={"model": "x", "deadline_ms": 90})
    merged, waiting = merge(config(), new)
    assert {"camera.driver", "camera.settings", "recipes", "inspection.model"} <= set(waiting)
    assert differences(config(), merged) == ["inspection.deadline_ms"]


def test_a_section_that_comes_or_goes_needs_a_restart():
    """Rule: TLS given for the first time is named by its keys."""
    _, waiting = merge(config(), config(mqtt={"tls": {"ca_file": "ca.pem"}}))
    assert waiting == ["mqtt.tls.ca_file"]


def test_a_new_key_is_on_the_safe_side():
    """Rule: what is not known to change live waits for a restart."""
    _, waiting = merge(config(), config(camera={**OLD["camera"], "silent_s": 20}))
    assert waiting == ["camera.silent_s"]


def test_settings_and_the_recipes_that_need_them_come_together():
    """Rule: a feature that is new in [camera.settings] and in a recipe changes live, both at once."""
    camera = {"driver": "simulated", "settings": {"ExposureTime": 1, "Gain": 1}}
    recipes = {"other": {"model": "flange", "settings": {"Gain": 4}}}
    merged, waiting = merge(config(), config(camera=camera, recipes=recipes))
    assert waiting == []
    assert merged.camera.settings == camera["settings"]
