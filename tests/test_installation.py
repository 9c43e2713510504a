"""Nobody is told to install a name that is not ours on a package index."""

import re
from pathlib import Path

import saqrl
from saqrl.installation import FOLLOWING, install

ROOT = Path(saqrl.__file__).parents[1]
# A name with extras, as pip takes it from an index.
FROM_AN_INDEX = re.compile(r"pip install (-\S+ )*[\"']?saqrl\b(?!-)")


def test_no_text_installs_saqrl_from_an_index():
    texts = [*ROOT.glob("saqrl/**/*.py"), *ROOT.glob("docs/**/*.md"), ROOT / "README.md"]
    assert len(texts) > 100
    found = [f"{path}: {line}" for path in texts for line in path.read_text().splitlines()
             if FROM_AN_INDEX.search(line)]  # fmt: skip
    assert not found
    assert FROM_AN_INDEX.search('pip install "saqrl[export]"')
    assert not FROM_AN_INDEX.search('pip install -e ".[export]" in your clone of saqrl')


def test_the_remedy_of_robosuite_has_its_second_command():
    assert "robosuite" in FOLLOWING
    for extra, packages in FOLLOWING.items():
        assert install(extra).endswith(f", then pip install --no-deps {packages}")
    assert install("export").endswith("in your clone of saqrl")
