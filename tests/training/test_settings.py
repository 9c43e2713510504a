"""The record of what a run was asked to do, as config.json holds it."""

import json

import pytest

from saqrl.training.flags import changed
from saqrl.training.presets import build_settings
from saqrl.training.settings import Settings
from saqrl.training.train import saved_settings
from tests.walking import run, small


class TestSettingsRecord:
    """What config.json may hold."""

    @pytest.fixture
    def record(self) -> dict:
        return changed(build_settings("default", agent="cql"), {"chunk": 2}).to_json()

    def refused(self, record: dict) -> str:
        """The one line of the refusal."""
        with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
            Settings.from_json(record)
        return str(caught.value)

    @pytest.mark.parametrize("version", [1, 3, None])
    def test_another_version_is_refused_with_the_remedy(self, record, version):
        record["version"] = version
        if version is None:  # as records were before they had a version
            del record["version"]
        assert self.refused(record) == (
            f"the settings have version {version}, and this saqrl reads version 2: train again, or "
            "use the version of saqrl that wrote them"
        )

    @pytest.mark.parametrize(
        ("place", "said"),
        [
            ((), "settings: unknown setting 'helf_out'"),
            (("data",), "data: unknown setting 'helf_out'; did you mean 'held_out'"),
            (("data", "reading"), "reading: unknown setting 'helf_out'"),
            (("features",), "features: unknown setting 'helf_out'"),
            (("evaluation",), "evaluation: unknown setting 'helf_out'"),
            (("output",), "output: unknown setting 'helf_out'"),
            (("agent",), "agent 'cql' has no field 'helf_out'"),
            (("quantizer",), "quantizer 'vqvae' has no field 'helf_out'"),
            (("prior",), "agent 'bc' has no field 'helf_out'"),
        ],
    )
    def test_an_unknown_key_is_refused_wherever_it_stands(self, record, place, said):
        inner = record
        for name in place:
            inner = inner[name]
        inner["helf_out"] = 0.1
        assert self.refused(record).startswith(said)

    @pytest.mark.parametrize(
        ("owner", "kind"), [("agent", "agent"), ("quantizer", "quantizer"), ("prior", "agent")]
    )
    def test_an_algorithm_that_is_not_installed_is_named_with_the_remedy(self, record, owner, kind):
        record[owner]["name"] = "absent"
        said = self.refused(record)
        assert said.startswith(f"unknown {kind} 'absent'")
        assert "install it" in said
        assert "call saqrl.register first" in said

    @pytest.mark.parametrize("name", ["agent", "quantizer", "prior"])
    def test_a_missing_algorithm_is_named(self, record, name):
        del record[name]
        assert self.refused(record) == f"settings: {name} is missing"

    def test_the_record_is_read_back_from_its_file_to_an_equal_one(self, record):
        again = Settings.from_json(json.loads(json.dumps(record)))
        assert again.to_json() == record
        assert again == changed(build_settings("default", agent="cql"), {"chunk": 2})

    def test_the_run_folder_is_named(self, record, dataset, tmp_path):
        run(small(dataset, "bc"), tmp_path / "run")
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        config["settings"]["version"] = 1
        (tmp_path / "run" / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=rf"{tmp_path / 'run'}: the settings have version 1"):
            saved_settings(tmp_path / "run")
        (tmp_path / "run" / "config.json").write_text("{}")
        with pytest.raises(ValueError, match=r"run/config\.json: settings is missing"):
            saved_settings(tmp_path / "run")
