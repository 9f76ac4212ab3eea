import pytest

from experiments import scrfd_search
from facejax.data.detection import DetectionImages
from facejax.train import Options


def test_both_searches_train_as_many_candidates_of_one_cost(faces_folder, monkeypatch):
    trained = []

    def quality(candidates, row, data, options, seed):
        trained.append(candidates.take([row]))
        return {"ap": float(candidates.widths[row, 0]) + 0.01 * len(trained)}

    monkeypatch.setattr(scrfd_search, "quality", quality)
    report = scrfd_search.search(3, DetectionImages(), Options(batch_size=4, steps=1), 0)
    assert len(trained) == 1 + 3 + 3 + 6
    rows = report.tables["Candidates"]
    cost = rows[0]["million"]
    assert all(abs(row["million"] / cost - 1) <= 0.02 for row in rows)
    assert all(abs(sum(row[part] for part in scrfd_search.PARTS) - 100) < 1e-6 for row in rows)
    best = max(row["ap"] for row in rows if row["search"] == "step 1")
    assert report.metrics["ap_trunks"] == best
    assert report.metrics["ap_search"] == max(best, report.metrics["ap_whole"])


def test_a_candidate_trains(faces_folder):
    data = DetectionImages("retinaface", str(faces_folder), image_size=64, max_boxes=4)
    found = scrfd_search.quality(scrfd_search.START, 0, data, Options(batch_size=8, steps=1), 0)
    assert found["ap"] == pytest.approx(found["ap"]) and "ap_tiny" in found
