"""The lamp grows old and the tool wears: what Lineward and a rule-based judge still see, and when the alarm comes.

On the simulated line the lamp falls evenly to 60 % of its light while the tool marks of each batch become deeper, up to
half as deep again. Image health watches every part of that line. At steps of the way the same parts, half of them
defective, are judged by Lineward's model and by two golden templates (golden.py), so that the curves differ by the lamp
and the tool alone. Writes docs/images/lamp.svg and prints what docs/explanation/when-the-lamp-grows-old.md quotes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from golden import Golden

from lineward.daemon.demo import SEED, ensure_model
from lineward.daemon.health import Alarms
from lineward.daemon.progress import cache_dir
from lineward.daemon.recipes import ActiveRecipe
from lineward.daemon.result import ModelRef
from lineward.daemon.triggers import Part
from lineward.daemon.watch.watcher import Watch
from lineward.drivers.camera import Frame
from lineward.drivers.simulation.dataset import FIRST_INDEX
from lineward.drivers.simulation.defects import Defect
from lineward.drivers.simulation.scene import Renderer, View
from lineward.drivers.simulation.surfaces import TEXTURE_ONE
from lineward.models.session import Session
from lineward.models.verdict import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

PRODUCT, WIDTH, HEIGHT = "bracket", 640, 512
LOWEST, WEAR = 0.6, 0.5
COMMISSIONING = 2000
JUDGED = 10
"""On the line every tenth part is judged, and those between count with its scores: the pictures are what is watched."""
TAKT_S = 0.2
TUNED_FROM, TEST_FROM = 4_000_000, 5_000_000
"""Indices of parts to tune and to test with: neither the training nor the line ever shows one."""


class WornTool(Renderer):
    """The line with a tool whose marks are deeper by a share ``wear``."""

    wear = 0.0

    def _marks(self, batch: int) -> NDArray[np.uint8]:
        marks = super()._marks(batch)
        worn = cv2.convertScaleAbs(marks, alpha=1 + self.wear, beta=-TEXTURE_ONE * self.wear)
        return np.asarray(worn, np.uint8)


@dataclass
class Step:
    """What was judged right at one step of the way, as shares."""

    lamp: float
    wear: float
    right: dict[str, float]
    review: float
    false_rejects: float
    escapes: float


def renderer(defect_rate: float) -> WornTool:
    """Draw the parts of the demo's line."""
    return WornTool(PRODUCT, seed=SEED, width=WIDTH, height=HEIGHT, defect_rate=defect_rate, pixel_format="Mono8")


def at(share: float) -> tuple[float, float]:
    """Lamp and wear at a share 0..1 of the way."""
    return 1 - (1 - LOWEST) * share, WEAR * share


def test_part(line: WornTool, number: int, view: View) -> tuple[NDArray[np.uint8], bool]:
    """Draw test part ``number``; every other one has a defect, from barely visible to obvious."""
    kind = "none" if number % 2 == 0 else list(Defect)[number // 2 % 6]
    return line.render(TEST_FROM + number, view=view, defect=kind)[0], number % 2 == 1


def judge_step(share: float, parts: int, session: Session, threshold: float, rules: dict[str, Golden]) -> Step:
    """Judge the test parts at one step of the way."""
    lamp, line = at(share)[0], renderer(0.0)
    line.wear = at(share)[1]
    right = dict.fromkeys(["Lineward", *rules], 0)
    review = rejects = escapes = 0
    for number in range(parts):
        image, bad = test_part(line, number, View(exposure=lamp))
        verdict = session.judge(image)
        right["Lineward"] += (verdict.defect_probability >= threshold) == bad
        review += verdict.decision is Decision.REVIEW
        rejects += not bad and verdict.decision is Decision.FAIL
        escapes += bad and verdict.decision is Decision.PASS
        for name, rule in rules.items():
            right[name] += rule.fails(image) == bad
    bads = parts // 2
    shares = {name: count / parts for name, count in right.items()}
    return Step(lamp, line.wear, shares, review / parts, rejects / (parts - bads), escapes / bads)


def watch_line(parts: int, session: Session) -> list[tuple[str, float, int, str]]:
    """Commission a line and let its lamp and tool grow old; returns alarm, lamp, part number and text of each alarm."""
    line, alarms = renderer(0.15), Alarms()
    model = ModelRef(PRODUCT, session.manifest.version, session.sha256)
    recipe = ActiveRecipe("default", PRODUCT, model, 500, {}, session, Path("demo.lward"))
    raised: dict[str, tuple[str, float, int, str]] = {}
    now_s = time.time()
    verdict = session.judge(line.render(0)[0])
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(Path(folder), alarms, parts=COMMISSIONING, clock=lambda: now_s)
        watch.use(recipe)
        for index in range(COMMISSIONING + 500 + parts):
            lamp, line.wear = at(max(0, index - COMMISSIONING - 500) / parts)
            part = Part("", "", 0, None, recipe, frame=Frame(line.render(index, view=View(exposure=lamp))[0], index, 0))
            assert part.frame is not None
            if index % JUDGED == 0:
                verdict = session.judge(part.frame.image)
            if watch.refusal(part) is None:
                watch.note(verdict)
            now_s += TAKT_S
            if index == COMMISSIONING - 1:
                while watch.stats()["state"] != "watching":
                    time.sleep(0.01)
            watch.speak()
            for name, alarm in alarms.raised().items():
                if name not in raised:
                    raised[name] = (name, lamp, index - COMMISSIONING - 500, alarm.text)
                    print(f"alarm {name} at lamp {lamp:.3f}, part {raised[name][2]}: {alarm.text}", flush=True)
        print(f"pictures taken for another product: {watch.wrong_products}")
        watch.close()
    return list(raised.values())


def learn_rules(session: Session, count: int) -> tuple[float, dict[str, Golden]]:
    """Learn the golden templates, and tune them and Lineward's threshold on the same parts, which no training saw.

    Returns the defect probability from which on Lineward says defect, and the golden templates.
    """
    line = renderer(0.0)
    learnt = [line.render(FIRST_INDEX + i, defect="none")[0] for i in range(100)]
    goods = [line.render(TUNED_FROM + i, defect="none")[0] for i in range(count)]
    bads = [line.render(TUNED_FROM + 10_000 + i, defect=list(Defect)[i % 6])[0] for i in range(count)]
    fine = np.array([session.judge(image).defect_probability for image in goods])
    faulty = np.array([session.judge(image).defect_probability for image in bads])
    threshold = max(np.concatenate([fine, faulty]), key=lambda at: (fine < at).mean() + (faulty >= at).mean())
    tuned = ((fine < threshold).mean() + (faulty >= threshold).mean()) / 2
    print(f"Lineward: defect from {threshold:.3f} on, tuned to {tuned:.1%}", flush=True)
    rules = {}
    for name, normalise in (("golden template", False), ("golden template, brightness normalised", True)):
        rules[name] = Golden.learn(learnt, normalise=normalise)
        tuned = rules[name].tune(goods, bads)
        print(
            f"{name}: tolerance {rules[name].tolerance:g}, area {rules[name].area:g} px, tuned to {tuned:.1%}",
            flush=True,
        )
    return float(threshold), rules


def judge_steps(session: Session, count: int, parts: int) -> list[Step]:
    """Judge the test parts at every step of the way, and say how it went."""
    threshold, rules = learn_rules(session, 200)
    steps = []
    for number in range(count):
        step = judge_step(number / (count - 1), parts, session, threshold, rules)
        steps.append(step)
        shown = ", ".join(f"{name} {share:.1%}" for name, share in step.right.items())
        print(
            f"lamp {step.lamp:.2f}, wear {step.wear:.2f}: {shown}; Lineward's bands: review {step.review:.1%}, "
            f"false rejects {step.false_rejects:.1%}, escapes {step.escapes:.1%}",
            flush=True,
        )
    return steps


def main() -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, default=12_000, help="parts on the line while the lamp falls")
    parser.add_argument("--test-parts", type=int, default=400, help="parts judged at each step, half of them defective")
    parser.add_argument("--steps", type=int, default=9, help="steps from full light to 60 %%")
    parser.add_argument("--keep", type=Path, help="file that keeps the judged steps; they are read when it exists")
    parser.add_argument("--svg", type=Path, default=Path(__file__).resolve().parents[1] / "docs/images/lamp.svg")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    session = Session(ensure_model(cache_dir() / "demo", PRODUCT, quiet=True))
    session.warm_up()
    if given.keep is not None and given.keep.exists():
        steps = [Step(**each) for each in json.loads(given.keep.read_text(encoding="utf-8"))]
    else:
        steps = judge_steps(session, given.steps, given.test_parts)
    if given.keep is not None:
        given.keep.write_text(json.dumps([vars(step) for step in steps]), encoding="utf-8")
    alarms = watch_line(given.parts, session)
    first = max((lamp for _, lamp, _, _ in alarms), default=None)
    lamps = [step.lamp for step in steps]
    ours = [step.right["Lineward"] for step in steps]
    lost = next((step.lamp for step in steps if step.right["Lineward"] < ours[0] - 0.02), None)
    at_alarm = None if first is None else float(np.interp(first, lamps[::-1], ours[::-1]))
    print(f"first alarm at lamp {first}, where Lineward is at {at_alarm}; started at {ours[0]:.3f}")
    print(f"Lineward has lost 2 points at lamp {lost if lost is not None else 'below ' + str(LOWEST)}")
    given.svg.write_text(plot(steps, alarms), encoding="utf-8")
    print(json.dumps({"steps": [vars(step) for step in steps], "alarms": alarms}))


def plot(steps: list[Step], alarms: list[tuple[str, float, int, str]]) -> str:
    """Draw the curves as SVG: lamp from left (100 %) to right (60 %), share judged right upwards."""
    left, top, width, height = 64, 24, 560, 300
    low = min(0.5, *(min(step.right.values()) for step in steps))

    def x(lamp: float) -> float:
        return left + width * (1 - lamp) / (1 - LOWEST)

    def y(share: float) -> float:
        return top + height * (1 - share) / (1 - low)

    colours = ["#1f6fb2", "#b2421f", "#7a7a7a"]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 24} {top + height + 132}" '
        'font-family="sans-serif" font-size="13" role="img" aria-label="Share of parts judged right while the lamp '
        'falls to 60 % and the tool wears">'
    )
    out = [head, '<rect width="100%" height="100%" fill="white"/>']
    for tick in range(round(low * 10), 11):
        share = tick / 10
        out.append(f'<path d="M{left} {y(share):.1f}h{width}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    out += [
        f'<text x="{x(tick / 10):.1f}" y="{top + height + 18}" text-anchor="middle">{tick * 10} %</text>'
        for tick in range(round(LOWEST * 10), 11)
    ]
    out.append(f'<text x="{left + width / 2}" y="{top + height + 38}" text-anchor="middle">light of the lamp</text>')
    for name, lamp, _, _ in alarms:
        out.append(f'<path d="M{x(lamp):.1f} {top}v{height}" stroke="#d08700" stroke-dasharray="5 4"/>')
        out.append(
            f'<text transform="translate({x(lamp) - 5:.1f} {top + height - 8}) rotate(-90)" fill="#8a5a00">'
            f"alarm: {name}</text>"
        )
    for number, name in enumerate(steps[0].right):
        points = " ".join(f"{x(step.lamp):.1f},{y(step.right[name]):.1f}" for step in steps)
        out.append(f'<polyline points="{points}" fill="none" stroke="{colours[number]}" stroke-width="2.5"/>')
        row = top + height + 62 + 20 * number
        out.append(f'<path d="M{left} {row - 4}h28" stroke="{colours[number]}" stroke-width="2.5"/>')
        out.append(f'<text x="{left + 36}" y="{row}">{name}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
