"""Chapter 11's study: teachers that are looked up answer as they would, and every student got what its search chose."""

import json

import pytest
import torch

from studies import distillation as study
from studies import students, teachers
from studies.record import store_of
from studies.store import NotYet
from vitutils import data, train
from vitutils.models import SmallCNN

COUNT = 400  # of the smallest scale


@pytest.fixture(scope="module")
def images():
    try:
        data.load("fashion_mnist", download=False)
    except data.DataError:
        pytest.skip("Fashion-MNIST is not on this machine")
    return teachers.whole_set(COUNT)


@pytest.fixture()
def smoke(tmp_path, images):
    return study.Study(store_of(study, tmp_path, "smoke"))


def batch(images, augment):
    parts = data.batches(
        images.train_images, images.train_labels, 64, seed=3, augment=augment, mean=images.mean, std=images.std
    )
    return next(iter(parts))[0]


def test_a_teacher_that_is_looked_up_answers_as_the_net_does(images):
    torch.manual_seed(0)
    net = SmallCNN(1, 10, (4, 8)).eval()
    how = {"mean": images.mean, "std": images.std}
    asked = [teachers.logits_of(net, part, **how) for part in (images.train_images, images.train_images.flip(3))]
    looked = teachers.Looked(torch.stack(asked, dim=1).flatten(0, 1), COUNT, **how)
    for seed in range(3):
        torch.manual_seed(seed)
        x = batch(images, teachers.AUGMENT[teachers.FLIPS])
        with torch.no_grad():
            torch.testing.assert_close(looked(x), net(x), atol=1e-5, rtol=0)


def test_a_view_that_nobody_asked_about_is_refused(images):
    looked = teachers.Looked(torch.zeros(2 * COUNT, 10), COUNT, images.mean, images.std)
    with pytest.raises(KeyError):
        torch.manual_seed(0)
        looked(batch(images, data.flip_shift(pad=2)))


def test_nothing_that_a_search_decides_is_named_before_it_is_over(smoke):
    named = smoke.resolved(imagenet=True)
    assert None in named and not any(name and name["part"] == "main" for name in named)
    for place, name in enumerate(named):
        if name and (wanted := smoke.needs(name)):
            assert wanted in named[:place], name
    final = [name for name in named if name and name["part"] in ("answers", "time")]
    for name in final:
        with pytest.raises(NotYet):
            smoke.wait(name)
    assert final


def test_one_student_waits_for_its_teacher_and_comes_out_again(smoke):
    way = study.Try(1e-2, weight=0.5, temperature=3.0)
    name = smoke.name_of("search", 100, study.SAME, "soft", way, study.SEARCH_SEED)
    teacher = smoke.needs(name)
    with pytest.raises(NotYet, match="1 other runs"):
        study.run(smoke.store, name)
    smoke.store.append(smoke.run(teacher))
    smoke.wait(name)
    assert (teacher["images"], teacher["seed"]) == (100, study.SEARCH_SEED)
    first = smoke.run(name)
    smoke.file(teacher).unlink()  # made anew where it is gone
    again = smoke.run(name)
    for field in ("accuracy", "loss", "told_right", "told_confidence"):
        assert first[field] == pytest.approx(again[field], abs=2e-3)
    assert first["told_right"] > 0 and list(first) == list(smoke.store.rows()[0])


def test_kinds_of_one_seed_start_alike_and_see_the_same_images(smoke, monkeypatch):
    seen = {}

    def fit(model, dataset, recipe, objective=train.labels_alone, **how):
        weight = model.blocks[0].mlp.fc1.weight.clone()
        seen[type(model).__name__, objective is train.labels_alone] = weight, dataset.train_images, recipe
        return real(model, dataset, recipe, objective=objective, **how)

    real = train.fit
    monkeypatch.setattr(students.train, "fit", fit)
    smoke.store.append(smoke.run(smoke.teacher_of("vit", "main", 100, 0)))
    for teacher, kind in (("", "none"), ("vit", "hard"), ("vit", "token"), ("labels", "token")):
        row = smoke.run(smoke.name_of("main", 100, teacher, kind, study.Try(1e-2, weight=0.5), 0))
        if teacher == "vit":  # the pocket ViT knows these images: its answers stand beside their own
            assert row["told_right"] > 0.85
    (weight, images, recipe), *others = seen.values()
    assert len(others) == 2
    for other_weight, other_images, other_recipe in others:
        assert torch.equal(weight, other_weight) and torch.equal(images, other_images)
        assert (recipe.epochs, recipe.seed, recipe.lr) == (other_recipe.epochs, other_recipe.seed, other_recipe.lr)


# --- the results that the chapter shows ---


@pytest.fixture(scope="module")
def rows():
    return store_of(study).rows()


def test_every_student_took_what_its_own_search_chose(rows):
    runs = study.Study(store_of(study))
    for row in rows:
        if row["part"] == "main":
            best = runs.chosen(int(row["images"]), row["teacher"], row["kind"])
            assert best == study.Try(**{field: float(row[field]) for field in study.Try.__dataclass_fields__}), row


def test_students_of_one_size_made_equal_steps(rows):
    steps = {}
    for row in rows:
        if row["part"] in ("main", "unlabelled"):
            about = row["part"], row["images"] if row["part"] == "main" else ""
            steps.setdefault(about, []).append(int(row["steps"]))
    for about, found in steps.items():
        assert max(found) - min(found) <= (0 if about[0] == "main" else 0.01 * max(found)), about


def test_the_table_of_decisions_is_one(rows):
    for row in (row for row in rows if row["part"] == "answers"):
        told = json.loads(row["details"])
        differ = torch.tensor(told["differ"])
        assert len(told["nets"]) == len(differ) == 14 and torch.equal(differ, differ.T) and not differ.diagonal().any()
        students = [
            r for r in rows if (r["part"], r["images"], r["seed"]) == ("main", row["images"], row["seed"])
            and r["teacher"] in ("", "cnn", "vit")
        ]
        for student in students:
            place = told["nets"].index(f"{student['teacher']} {student['kind']}".strip())
            assert differ[0, place].item() == pytest.approx(1 - float(student["accuracy"]), abs=2e-5)
