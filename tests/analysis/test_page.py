import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from facejax.analysis import page
from tests.analysis.runs import make_run, people

NASTY = '</script><img src=x onerror=alert(1)>"&.jpg'
FACTS = [
    {"quality": 0.9, "age": 30.0, "pose": [-40.0, 1.0, 2.0]},
    {"quality": 0.2, "age": 61.5, "pose": [5.0, 1.0, 2.0]},
    {"quality": 0.5, "age": 8.0, "pose": [20.0, 1.0, 2.0]},
]
FILES = ["a/one.jpg", NASTY, "b/three.jpg", "b/four.jpg"]


@pytest.fixture
def run(tmp_path):
    made = make_run(tmp_path / "Ada & <Bob>", people(4, 1)[0], FILES, FACTS)
    with open(made / "faces.jsonl", "a") as lines:
        print(json.dumps({"file": "bad.jpg", "error": "bad.jpg: a JPEG cut short"}), file=lines)
    return made


def content(path):
    return json.loads(re.search(r'type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)[1])


def test_facts_pictures_and_escapes(run):
    page.write(run)
    text = (run / "index.html").read_text()
    assert "<title>Faces: Ada &amp; &lt;Bob&gt;</title>" in text
    assert text.count("<script") == 2 and "<img src=x" not in text
    found = content(run / "index.html")
    assert [face["file"] for face in found["faces"]] == FILES and found["failed"][0]["file"] == "bad.jpg"
    assert (found["total"], found["photographs"]) == (4, 4)
    first = found["faces"][0]
    assert (first["quality"], first["age"], first["yaw"], first["roll"]) == (0.9, 30, -40, 2)
    assert first["image"].startswith("data:image/jpeg;base64,") and "quality" not in found["faces"][3]
    assert not re.search(r'(src|href)="(?!data:)', text)  # nothing is loaded from elsewhere


def test_large_runs_are_bounded_and_faces_have_their_groups(run, tmp_path):
    page.write(run, tmp_path / "page.html", {2: page.Place(5, 0.25)}, most=2)
    found = content(tmp_path / "page.html")
    assert [face["id"] for face in found["faces"]] == [2, 3] and found["total"] == 4
    assert (found["faces"][0]["group"], found["faces"][0]["certainty"]) == (5, 0.25)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Ada & <Bob>", "page.html"]


def test_picture_links_lead_from_the_page(run, tmp_path):
    record = {"file": "x.jpg", "picture": "pictures/0 1.jpg"}
    found = page._described(run, tmp_path / "out" / "page.html", record, {"id": 0, "score": 0.5}, {})
    assert found["picture"] == "../Ada%20%26%20%3CBob%3E/pictures/0%201.jpg" and found["image"] == ""


STEPS = """
const told = [];
const files = () => [...document.querySelectorAll("#faces .name")].map(name => name.title);
const set = (id, value) => { at(id).value = value; at(id).dispatchEvent(new Event("input", {bubbles: true})); };
told.push(files());
set("sort", "quality"); told.push(files());
set("order", "-1"); told.push(files());
set("sort", "turned"); told.push(files());
set("age_least", "10"); told.push(files());
set("age_least", ""); set("yaw_least", "0"); set("yaw_most", "10"); told.push(files());
set("yaw_least", ""); set("yaw_most", ""); set("group", "1"); told.push(files());
set("group", ""); set("text", "B/"); told.push(files(), at("count").textContent);
set("text", ""); set("sort", "id"); set("order", "1");
document.querySelectorAll("#faces button")[1].click();
told.push([at("large").open, at("large").querySelector("td:nth-child(2)").textContent,
           at("large").querySelectorAll("td")[1].textContent]);
at("large").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
told.push(at("large").querySelectorAll("td")[1].textContent);
at("close").click();
told.push([at("large").open, document.querySelectorAll("#failed li").length]);
setTimeout(() => {
  told.push(document.activeElement === document.querySelectorAll("#faces button")[2]);
  document.body.textContent = JSON.stringify(told);
}, 50);
"""


def test_in_a_browser(run, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not browser:
        pytest.skip("no Chromium is installed")
    place = tmp_path / "page.html"
    page.write(run, place, {0: page.Place(0, 0.4), 1: page.Place(1, 0.1), 2: page.Place(0, 0.3)})
    place.write_text(place.read_text().replace("refresh();\n</script>", "refresh();\n" + STEPS + "</script>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    flags.append(f"--user-data-dir={tmp_path / 'profile'}")
    done = subprocess.run([browser, *flags, place.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    told = json.loads(html.unescape(re.search("<body>(.*?)</body>", done.stdout, re.S)[1]))
    one, nasty, three, four = FILES
    assert told == [
        [one, nasty, three, four],
        [nasty, three, one, four],  # without a quality: last
        [one, three, nasty, four],
        [one, three, nasty, four],  # turned by 40, 20 and 5 degrees
        [one, nasty],
        [nasty],
        [nasty],
        [three, four],
        "2 of 4 faces in 4 photographs",
        [True, "1", nasty],
        three,
        [False, 1],
        True,
    ]


def test_no_run(tmp_path):
    with pytest.raises(OSError):
        page.write(tmp_path)
    assert np.array_equal(list(tmp_path.iterdir()), [])
