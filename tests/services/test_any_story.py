"""Whatever comes, in whatever order, and whatever the far ends do: in the end all is where it belongs."""

import shutil
import tempfile
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from pydicom import dcmread

from orchestra import Orchestra, data_sets
from talaria.model.job import Kind
from talaria.testing import FailingTarget, Step, synthetic_ct

pytestmark = pytest.mark.slow

BOOK = """\
settings: {{series_quiet: 10s, study_quiet: 40s}}
targets:
  out: {{kind: folder, path: {home}/out}}
  flaky: {{kind: failing, journal: {home}/journal, script: [{script}], retry: {{first: 5s, most: 60s, budget: 72h}}}}
rules:
  junk: {{when: tags.SeriesDescription == "JUNK", action: discard}}
  thin: {{when: tags.SeriesDescription == "THIN", send: [out, flaky]}}
  again: {{when: tags.SeriesDescription == "THIN", send: [out], complete: {{quiet: 25s}}}}
  study: {{when: tags.SeriesDescription == "SCOUT", trigger: study, send: [flaky]}}
"""
DESCRIPTIONS = ("THIN", "SCOUT", "JUNK")
PASSES = (Step.SEND, Step.WARN, Step.TRANSIENT, Step.CONGESTED, Step.NO_ROOM)


def make_files(folder: Path) -> list[Path]:
    """Two studies of a series of each description, two instances each, of each instance two contents."""
    found = []
    for study in range(2):
        for number, description in enumerate(DESCRIPTIONS):
            for path in synthetic_ct(folder / "made", slices=2, seed=study, side=8).paths:
                for content in range(2):
                    dataset = dcmread(path)
                    dataset.SeriesInstanceUID += f".{number}"
                    dataset.SOPInstanceUID += f".{number}"
                    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
                    dataset.SeriesDescription, dataset.ImageComments = description, f"content {content}"
                    found.append(folder / f"{len(found):02d}.dcm")
                    dataset.save_as(found[-1])
    return found


class Story(RuleBasedStateMachine):
    """Images come, time passes, workers die; in the end the far ends are looked at."""

    files: list[Path]

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.orchestra = Orchestra(self.home, targets={"failing": FailingTarget})
        self.received: list[Path] = []
        (self.home / "out").mkdir()

    @initialize(script=st.lists(st.sampled_from(PASSES), max_size=10))
    def begin(self, script: list[Step]) -> None:
        self.orchestra.apply(BOOK.format(home=self.home, script=", ".join(script)))

    @rule(chosen=st.lists(st.integers(0, 23), min_size=1, max_size=8))
    def receive(self, chosen: list[int]) -> None:
        paths = [self.files[number] for number in chosen]
        self.orchestra.receive(paths)
        self.received += paths

    @rule(seconds=st.sampled_from([1, 10, 16, 45, 120]))
    def wait(self, seconds: int) -> None:
        self.orchestra.wait(timedelta(seconds=seconds), step=timedelta(seconds=7))

    @rule()
    def die(self) -> None:
        """A dispatcher takes a job with it to its grave."""
        self.orchestra.jobs.claim(
            Kind.DISPATCH, owner="grave/1/1", spools=[self.orchestra.spool.name], now=self.orchestra.clock.now(),
            off_peak=True,
        )  # fmt: skip

    @rule()
    def find_the_dead(self) -> None:
        self.orchestra.jobs.expire(now=self.orchestra.clock.now(), is_dead=lambda owner: owner.startswith("grave/"))

    def teardown(self) -> None:
        """
        Each content that was in use when its portion was closed is where its rule says; nothing else is anywhere.
        """
        try:
            self.find_the_dead()
            self.orchestra.wait(timedelta(hours=1), step=timedelta(seconds=41))
            self.look()
        finally:
            self.orchestra.ledger.close()
            shutil.rmtree(self.home)

    def look(self) -> None:
        states = {job.state for job in self.orchestra.listing.jobs(limit=500).items}
        assert states <= {"done"}
        newest = {}
        came = defaultdict(set)
        for path in self.received:
            for uid, data in data_sets([path]).items():
                if data not in came[uid]:
                    newest[uid] = data  # a copy of what was there already changes nothing
                came[uid].add(data)
        thin = {uid for uid in came if uid.endswith(".0")}
        scouts = {dcmread(path).StudyInstanceUID for path in self.received if self.described(path) == "SCOUT"}
        of_scouts = {
            str(dataset.SOPInstanceUID)
            for dataset in map(dcmread, self.received)
            if dataset.StudyInstanceUID in scouts and dataset.SeriesDescription != "JUNK"
        }
        delivered = self.delivered()
        assert thin == set(delivered)
        assert all(newest[uid] in delivered[uid] <= came[uid] for uid in thin)
        assert thin | of_scouts == set(FailingTarget(journal=self.home / "journal").received())

    def described(self, path: Path) -> str:
        return str(dcmread(path).SeriesDescription)

    def delivered(self) -> dict[str, set[bytes]]:
        """The data sets in the folder, by SOP Instance UID."""
        found = defaultdict(set)
        for path in (self.home / "out").rglob("*.dcm"):
            for uid, data in data_sets([path]).items():
                found[uid].add(data)
        return found


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The files of all stories."""
    Story.files = make_files(tmp_path_factory.mktemp("files"))


class TestStory(Story.TestCase):  # type: ignore[misc,valid-type]  # made by hypothesis
    """Any story."""

    settings = settings(
        max_examples=6, stateful_step_count=15, deadline=None, phases=[Phase.generate]
    )  # to shrink a story takes minutes
