"""Distillation: both losses, what the teacher sees and keeps, the second token; held against vit-pytorch and timm."""

import copy
import math
from dataclasses import replace
from functools import wraps

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from vit_pytorch.distill import DistillableViT, DistillWrapper

from vitutils import check, data, train
from vitutils.models import DistilledViT, SmallCNN, ViT, ViTConfig, conversion
from vitutils.training.distill import Distillation, hard_loss, soft_loss

DIGITS = ViTConfig(img_size=8, patch_size=4, in_chans=1, num_classes=10, embed_dim=16, depth=1, num_heads=2)
SHORT = train.Recipe(epochs=2, batch_size=64, lr=2e-3)
PHOTOS = ViTConfig(img_size=32, patch_size=8, num_classes=7, embed_dim=24, depth=2, num_heads=3)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").take(train=320, test=40)


@pytest.fixture(scope="module")
def trained(digits):
    """A CNN with BatchNorm that has learned the digits, in train mode; its state, since teachers are frozen."""
    torch.manual_seed(0)
    net = SmallCNN(1, 10, (16, 32))
    history = train.fit(net, digits, train.Recipe(epochs=8, batch_size=32, lr=1e-2))
    assert history.accuracy > 0.7
    return net.state_dict()


def teacher_with(state):
    net = SmallCNN(1, 10, (16, 32))
    net.load_state_dict(state)
    return net


def batch_norm_teacher(in_chans=1, num_classes=10):
    """An untrained CNN with BatchNorm, in train mode; its decisions differ from image to image."""
    torch.manual_seed(5)
    net = SmallCNN(in_chans, num_classes, (8,))
    nn.init.normal_(net.head.weight, std=9.0)
    with torch.no_grad():
        net.head.bias -= net.eval()(draw(64, in_chans, 8, 8)).mean(dim=0)
    return net.train()


def new_student(seed=0, kind=DistilledViT):
    torch.manual_seed(seed)
    return kind(DIGITS)


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def draw(*shape, seed=0, std=1.0):
    return std * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the two losses ---


def by_hand(student, teacher, T):
    """T^2 * mean over images of sum p ln(p / q), in plain numbers, from probabilities at temperature 1."""
    total = 0.0
    for q, p in zip(student, teacher, strict=True):
        q, p = [value ** (1 / T) for value in q], [value ** (1 / T) for value in p]
        q, p = [value / sum(q) for value in q], [value / sum(p) for value in p]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return T**2 * total / len(student)


@pytest.mark.parametrize("T", [0.5, 1.0, 4.0])
def test_the_soft_loss_is_the_sum_written_by_hand(T):
    student, teacher = [[1 / 2, 1 / 4, 1 / 4], [0.1, 0.2, 0.7]], [[1 / 8, 1 / 8, 3 / 4], [0.3, 0.3, 0.4]]
    loss = soft_loss(torch.tensor(student).log(), torch.tensor(teacher).log(), T)
    assert loss.shape == () and loss.item() == pytest.approx(by_hand(student, teacher, T), rel=1e-5)
    if T == 1:
        first = 1 / 8 * math.log(1 / 4) + 1 / 8 * math.log(1 / 2) + 3 / 4 * math.log(3)
        one = soft_loss(torch.tensor(student[:1]).log(), torch.tensor(teacher[:1]).log(), T)
        assert one.item() == pytest.approx(first, rel=1e-5)


def test_the_soft_loss_is_zero_where_logits_agree_up_to_a_constant():
    teacher = draw(4, 10, std=3.0)
    student = teacher + torch.tensor([[-7.0], [0.0], [2.0], [30.0]])
    for T in (0.5, 1.0, 5.0):
        assert soft_loss(student, teacher, T).item() == pytest.approx(0, abs=1e-5)
        assert soft_loss(student.flip(1), teacher, T) > 0.1


def test_the_gradient_of_the_soft_loss_keeps_its_size_and_tends_to_the_gap_of_the_logits():
    B, K = 4, 10
    teacher, start = draw(B, K, seed=1, std=2.0).double(), draw(B, K, seed=2, std=2.0).double()

    def gradient(T):
        student = start.clone().requires_grad_()
        return torch.autograd.grad(soft_loss(student, teacher, T), student)[0]

    gap = start - teacher
    limit = (gap - gap.mean(dim=1, keepdim=True)) / K / B  # a mean over images: each counts 1 / B
    assert limit.abs().max() > 1e-2
    assert (gradient(1e5) - limit).abs().max() < 1e-5
    sizes = [gradient(T).norm() / limit.norm() for T in (10.0, 100.0, 1000.0)]
    assert sizes == pytest.approx([1, 1, 1], abs=0.2)


def test_the_hard_loss_is_cross_entropy_with_the_teachers_decision():
    student, teacher = draw(6, 10, seed=1), draw(6, 10, seed=2)
    decided = [max(range(10), key=row.__getitem__) for row in teacher.tolist()]
    expected = -sum(student.log_softmax(1)[n, k].item() for n, k in enumerate(decided)) / 6
    assert len(set(decided)) > 2
    assert hard_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert hard_loss(student, 100 * teacher + 3) == hard_loss(student, teacher), "the decision alone counts"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"kind": "Hard"}, "kind is 'soft' or 'hard', got 'Hard'"),
        ({"kind": None}, "kind is 'soft' or 'hard', got None"),
        ({"weight": 1.5}, "expected a weight from 0 to 1, got 1.5"),
        ({"weight": -0.1}, "a weight from 0 to 1, got -0.1"),
        ({"weight": float("nan")}, "a weight from 0 to 1, got nan"),
        ({"temperature": 0}, "a temperature above 0, got 0$"),
        ({"temperature": -2.0}, "a temperature above 0, got -2.0"),
    ],
)
def test_what_cannot_be_a_distillation_is_refused_and_the_teacher_left_alone(what, message):
    teacher = batch_norm_teacher()
    with pytest.raises(ValueError, match=message):
        Distillation(teacher, **what)
    assert all(p.requires_grad for p in teacher.parameters())


def test_the_ends_of_the_range_are_allowed():
    for weight in (0, 1):
        assert Distillation(nn.Identity(), weight=weight, temperature=0.01).weight == weight


# --- the objective ---


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_each_output_has_its_task_and_smoothing_is_for_the_labels(kind, smoothing):
    teacher, images, labels = batch_norm_teacher().eval(), draw(6, 1, 8, 8), torch.arange(6)
    for_labels, for_teacher = draw(6, 10, seed=1), draw(6, 10, seed=2)
    with torch.no_grad():
        told = teacher(images)
    assert len(set(told.argmax(dim=1).tolist())) > 2
    part = hard_loss(for_teacher, told) if kind == "hard" else soft_loss(for_teacher, told, 3.0)
    log_p = for_labels.log_softmax(dim=1)
    own = -((1 - smoothing) * log_p[range(6), labels] + smoothing * log_p.mean(dim=1)).mean()
    objective = Distillation(teacher, kind, weight=0.3, temperature=3.0)
    loss = objective((for_labels, for_teacher), images, labels, smoothing)
    assert loss.item() == pytest.approx((0.7 * own + 0.3 * part).item(), rel=1e-5)
    alone = objective(for_labels, images, labels, smoothing)
    assert alone.item() == pytest.approx(objective((for_labels, for_labels), images, labels, smoothing).item())
    assert alone.item() != pytest.approx(loss.item(), rel=1e-2)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_ends_of_the_weight_leave_one_part(kind):
    teacher, images, labels, logits = batch_norm_teacher(), draw(6, 1, 8, 8), torch.arange(6), draw(6, 10, seed=1)
    objective = Distillation(teacher, kind, weight=0.0)
    assert objective(logits, images, labels).item() == pytest.approx(F.cross_entropy(logits, labels).item())
    objective = Distillation(teacher, kind, weight=1.0)
    assert torch.equal(objective(logits, images, labels), objective(logits, images, labels.flip(0)))


def test_mixed_labels_are_probabilities():
    teacher, images, logits = batch_norm_teacher(), draw(4, 1, 8, 8), draw(4, 10, seed=1)
    labels = torch.zeros(4, 10)
    labels[:, 2], labels[:, 7] = 0.25, 0.75
    log_p = logits.log_softmax(dim=1)
    own = -(0.25 * log_p[:, 2] + 0.75 * log_p[:, 7]).mean()
    assert Distillation(teacher, weight=0.0)(logits, images, labels).item() == pytest.approx(own.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_teacher_of_other_classes_is_refused(kind):
    objective = Distillation(batch_norm_teacher(num_classes=7), kind)
    with pytest.raises(ValueError, match=r"the student's logits are \(4, 10\), the teacher's \(4, 7\)"):
        objective(draw(4, 10), draw(4, 1, 8, 8), torch.arange(4))
    with pytest.raises(ValueError, match=r"the student's logits are \(4, 10\), the teacher's \(4, 7\)"):
        objective((draw(4, 7), draw(4, 10)), draw(4, 1, 8, 8), torch.arange(4))
    with pytest.raises(ValueError, match=r"the student's logits are \(1, 7\), the teacher's \(4, 7\)"):
        objective(draw(1, 7), draw(4, 1, 8, 8), torch.arange(1))  # would broadcast


# --- the teacher ---


def test_the_teacher_is_frozen_in_place_and_no_gradient_reaches_it():
    teacher = batch_norm_teacher()
    logits = draw(4, 10, seed=1).requires_grad_()
    for kind in ("soft", "hard"):
        objective = Distillation(teacher.requires_grad_(True), kind)
        assert objective.teacher is teacher and not any(p.requires_grad for p in teacher.parameters())
        teacher.requires_grad_(True)  # even where somebody thaws it
        objective(logits, draw(4, 1, 8, 8), torch.arange(4)).backward()
        assert all(p.grad is None for p in teacher.parameters())
    assert logits.grad.abs().max() > 0


def test_the_teacher_answers_in_eval_mode_whatever_mode_it_was_put_in():
    teacher, images = batch_norm_teacher(), draw(6, 1, 8, 8, std=2.0) + 1
    teacher.stages.append(nn.Dropout(0.5))
    with torch.no_grad():
        expected = copy.deepcopy(teacher).eval()(images)
    before = state_of(teacher)
    objective = Distillation(teacher)
    for _ in range(2):
        teacher.train()
        assert torch.equal(objective.ask(images), expected) and not objective.ask(images).requires_grad
        assert all(module.training for module in teacher.modules()), "its own mode comes back"
    teacher.stages[1].eval()
    objective.ask(images)
    assert teacher.training and not teacher.stages[1].training and teacher.stages[0].training
    assert same(before, state_of(teacher)), "its running means stand"


def test_the_teacher_follows_the_images_to_their_device():
    objective = Distillation(batch_norm_teacher())
    elsewhere = [t.to("meta") for t in (draw(4, 10), draw(4, 1, 8, 8), torch.arange(4))]
    assert objective(*elsewhere).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_gpu_trains_with_a_teacher_that_came_on_the_cpu(kind, digits):
    student, objective = new_student(), Distillation(batch_norm_teacher(), kind, temperature=3.0)
    history = train.fit(student, digits, replace(SHORT, epochs=8, lr=5e-3), objective=objective, device="cuda")
    assert history.losses[-1] < history.losses[0] and next(objective.teacher.parameters()).is_cuda


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.8}], ids=["labels", "mixed labels"])
def test_in_fit_the_teacher_sees_the_students_images_in_eval_mode_and_stays_as_it_was(digits, mixing):
    student, teacher, given = new_student(), batch_norm_teacher(), []
    by_student, by_teacher, modes = [], [], []

    def augment(images):
        teacher.train()  # somebody's train() between any two steps
        return data.flip_shift(1)(images)

    class Watched(Distillation):
        def __call__(self, outputs, images, labels, label_smoothing=0.0):
            given.append((type(outputs), labels, label_smoothing))
            return super().__call__(outputs, images, labels, label_smoothing)

    student.register_forward_pre_hook(lambda net, x: by_student.append(x[0]) if net.training else None)
    teacher.register_forward_pre_hook(lambda net, x: by_teacher.append(x[0]))
    teacher.stages[1].register_forward_pre_hook(lambda norm, _: modes.append(norm.training))
    before = state_of(teacher)
    recipe = replace(SHORT, augment=augment, label_smoothing=0.1, **mixing)
    train.fit(student, digits, recipe, objective=Watched(teacher))
    assert len(by_student) == len(by_teacher) == len(given) == 10
    assert all(torch.equal(one, other) for one, other in zip(by_student, by_teacher, strict=True))
    untouched = data.normalise(digits.train_images, digits.mean, digits.std)
    assert not all((untouched == image).flatten(1).all(1).any() for image in by_teacher[0][:16]), "augmented"
    assert not any(modes) and same(before, state_of(teacher))
    shape = (64, 10) if mixing else (64,)
    assert all(kind is tuple and labels.shape == shape and s == 0.1 for kind, labels, s in given)
    if mixing:
        assert any(((labels > 0).sum(dim=1) == 2).any() for _, labels, _ in given)


def test_with_all_the_weight_on_the_teacher_the_labels_do_not_matter_and_the_student_follows(digits, trained):
    wrong = replace(digits, train_labels=(digits.train_labels + 1) % 10)
    recipe, students = replace(SHORT, epochs=12, lr=5e-3), []
    for dataset in (digits, wrong):
        students.append(new_student(kind=ViT))
        objective = Distillation(teacher_with(trained), "soft", weight=1.0, temperature=2.0)
        history = train.fit(students[-1], dataset, recipe, objective=objective)
        assert history.accuracy > 0.4, "right where the labels that it was given are wrong"
    assert same(*(state_of(student) for student in students))


# --- a run that goes on ---


class Killed(Exception):
    """Stands for the kill of a process between two steps."""


def test_a_killed_run_with_a_teacher_resumes_to_the_same_weights_to_the_bit(digits, tmp_path):
    path, seen = tmp_path / "run.pt", []

    @wraps(data.flip_shift(1))  # for a checkpoint it is what it wraps
    def kill(images):
        seen.append(1)
        if len(seen) > 8:  # in the second of three epochs of 5 batches
            raise Killed
        return data.flip_shift(1)(images)

    recipe = replace(SHORT, epochs=3, mixup=0.2, ema_decay=0.9, augment=data.flip_shift(1))
    teaching = dict(kind="soft", weight=0.7, temperature=3.0)
    whole, resumed = new_student(), new_student(seed=9)
    history = train.fit(whole, digits, recipe, objective=Distillation(batch_norm_teacher(), **teaching))
    with pytest.raises(Killed):
        first = Distillation(batch_norm_teacher(), **teaching)
        train.fit(new_student(), digits, replace(recipe, augment=kill), objective=first, checkpoint=path)
    again = Distillation(batch_norm_teacher(), **teaching)
    second = train.fit(resumed, digits, recipe, objective=again, checkpoint=path, resume=True)
    assert same(state_of(whole), state_of(resumed)) and second.losses == history.losses


@pytest.fixture(scope="module")
def taught(digits, tmp_path_factory):
    """A checkpoint of a run with a teacher, soft, weight 0.7, temperature 3."""
    path = tmp_path_factory.mktemp("taught") / "run.pt"
    objective = Distillation(batch_norm_teacher(), "soft", weight=0.7, temperature=3.0)
    train.fit(new_student(kind=ViT), digits, replace(SHORT, epochs=1), objective=objective, checkpoint=path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 4.0}, r"\(temperature: 3\.0 then, 4\.0 now\)"),
        ({"kind": "hard"}, r"\(kind: soft then, hard now\)"),
        ({"weight": 0.5}, r"\(weight: 0\.7 then, 0\.5 now\)"),
        ({"teacher": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}, r"\(teacher: SmallCNN \w+ then, Sequential \w+ "),
    ],
)
def test_another_teaching_is_named_and_refused(digits, taught, change, message):
    teaching = {"teacher": batch_norm_teacher(), "kind": "soft", "weight": 0.7, "temperature": 3.0}
    objective = Distillation(**(teaching | change))
    model = new_student(kind=ViT)
    before = state_of(model)
    with pytest.raises(ValueError, match=r"run\.pt was written under another recipe " + message):
        train.fit(model, digits, replace(SHORT, epochs=1), objective=objective, checkpoint=taught, resume=True)
    assert same(before, state_of(model))


def test_a_teacher_of_other_weights_is_another_teacher(digits, taught):
    """One weight, or one of BatchNorm's running means, in the last bit."""
    for name in ("head.bias", "stages.1.running_mean"):
        teacher = batch_norm_teacher()
        with torch.no_grad():
            value = teacher.state_dict()[name]
            value[-1] = torch.nextafter(value[-1], torch.tensor(9e9))
        objective = Distillation(teacher, "soft", weight=0.7, temperature=3.0)
        with pytest.raises(ValueError, match=r"\(teacher: SmallCNN \w+ then, SmallCNN \w+ now\): delete it"):
            model = new_student(kind=ViT)
            train.fit(model, digits, replace(SHORT, epochs=1), objective=objective, checkpoint=taught, resume=True)


def test_a_teachings_numbers_become_pythons(digits, tmp_path):
    for kind in (np.float64, torch.tensor, np.float32, np.array):
        objective = Distillation(batch_norm_teacher(), "soft", weight=kind(0.5), temperature=kind(2.0))
        assert {type(value) for value in objective.numbers().values()} == {str, float}
        assert (objective.weight, objective.temperature) == (0.5, 2.0)
    how = {"recipe": replace(SHORT, epochs=1), "checkpoint": tmp_path / "run.pt", "objective": objective}
    train.fit(new_student(), digits, **how)
    assert len(train.fit(new_student(), digits, **how, resume=True).losses) == 5


def test_a_run_goes_on_neither_without_its_teacher_nor_with_a_new_one(digits, taught, tmp_path):
    with pytest.raises(ValueError, match=r"kind: soft then, None now; .*; teacher: SmallCNN \w+ then, None now; "):
        train.fit(new_student(kind=ViT), digits, replace(SHORT, epochs=1), checkpoint=taught, resume=True)
    path = tmp_path / "alone.pt"
    train.fit(new_student(kind=ViT), digits, replace(SHORT, epochs=1), checkpoint=path)
    how = {"objective": Distillation(batch_norm_teacher()), "checkpoint": path, "resume": True}
    with pytest.raises(ValueError, match=r"kind: None then, hard now; .*teacher: None then, SmallCNN \w+ now; "):
        train.fit(new_student(kind=ViT), digits, replace(SHORT, epochs=1), **how)


# --- DistilledViT: what it is by itself ---


def test_a_distilled_vit_begins_as_the_vit_of_the_same_seed():
    torch.manual_seed(3)
    plain = ViT(DIGITS).state_dict()
    own = new_student(seed=3).state_dict()
    assert own.keys() - plain.keys() == {"dist_token", "head_dist.weight", "head_dist.bias"}
    assert all(torch.equal(own[key], plain[key]) for key in plain.keys() - {"pos_embed"})
    positions = own["pos_embed"]
    assert positions.shape == (1, 2 + 4, 16)
    assert torch.equal(torch.cat([positions[:, :1], positions[:, 2:]], dim=1), plain["pos_embed"])
    place = positions[:, 1]
    assert 0.005 < place.std() < 0.05 and not torch.equal(place, positions[:, 0]), "else both tokens stay the same"
    assert own["dist_token"].shape == (1, 1, 16) and not own["head_dist.weight"].any()


def test_its_two_tokens_differ_from_the_start():
    tokens = new_student().forward_features(draw(2, 1, 8, 8))
    assert tokens.shape == (2, 6, 16) and (tokens[:, 0] - tokens[:, 1]).abs().max() > 1e-2


def test_its_gradients_lie_in_memory_as_its_parameters_do_else_ddp_warns():
    student = new_student()
    sum(logits.sum() for logits in student(draw(2, 1, 8, 8))).backward()
    assert all(p.grad.stride() == p.stride() for p in student.parameters())


def test_its_first_loss_is_ln_k_and_it_learns(digits, trained):
    student = new_student()
    recipe = replace(SHORT, epochs=15, lr=5e-3, ema_decay=0.5)
    history = train.fit(student, digits, recipe, objective=Distillation(teacher_with(trained)))
    assert history.losses[0] == pytest.approx(math.log(10), abs=1e-5)
    assert history.losses[-1] < 0.8 * history.losses[0] and history.accuracy > 0.5
    result = train.evaluate(student, digits.test_images, digits.test_labels, mean=digits.mean, std=digits.std)
    assert result.accuracy == history.accuracy, "evaluation asks both heads"
    moved = state_of(new_student()).items()
    assert all((value - state_of(student)[name]).abs().max() > 1e-4 for name, value in moved)


def test_tokens_and_positions_do_not_decay_its_second_head_does():
    student = new_student()
    decay, keep = train.parameter_groups(student, 0.05)
    kept, decayed = ({id(p) for p in group["params"]} for group in (keep, decay))
    assert {id(student.dist_token), id(student.pos_embed), id(student.head_dist.bias)} <= kept
    assert id(student.head_dist.weight) in decayed


def test_mean_pooling_has_no_class_token_to_stand_beside():
    with pytest.raises(ValueError, match="expected global_pool 'token', got 'avg'"):
        DistilledViT(replace(DIGITS, global_pool="avg"))


# --- DistilledViT: timm's ---


@pytest.fixture(scope="module")
def pair():
    """timm's distilled DeiT, small and with random weights, and ours with a copy of them."""
    torch.manual_seed(0)
    sizes = dict(img_size=32, patch_size=8, num_classes=7, embed_dim=24, depth=2, num_heads=3)
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", **sizes, dynamic_img_size=True)
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.2)
    ours = DistilledViT(PHOTOS)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.set_distilled_training(True)
    return theirs, ours


def test_it_computes_what_timms_does(pair):
    theirs, ours = (net.eval() for net in pair)
    images = draw(3, 3, 32, 32)
    with torch.no_grad():
        assert theirs(images).abs().max() > 0.1
        check.check_close(ours(images), theirs(images), tol=1e-5)
        class_answer, teacher_answer = ours.train()(images)
        expected = theirs.train()(images)
    assert (expected[0] - expected[1]).abs().max() > 0.1
    check.check_close(class_answer, expected[0], tol=1e-5)
    check.check_close(teacher_answer, expected[1], tol=1e-5)


@pytest.mark.parametrize("shape", [(48, 48), (32, 40), (16, 24)])
def test_images_of_another_size_get_timms_positions(pair, shape):
    theirs, ours = (net.eval() for net in pair)
    images = draw(2, 3, *shape)
    with torch.no_grad():
        logits, attn = ours(images, need_weights=True)
        assert logits.shape == (2, 7) and attn.shape[-1] == 2 + shape[0] * shape[1] // 64
        check.check_close(logits, theirs(images), tol=1e-5)


def test_its_maps_have_a_row_for_each_of_its_tokens(pair):
    ours, images = pair[1].eval(), draw(2, 3, 32, 32)
    with torch.no_grad():
        logits, attn = ours(images, need_weights=True)
        check.check_shape(attn, (2, 2, 3, 18, 18), "B depth h T T")
        check.check_rows_sum_to_one(attn)
        check.check_close(logits, ours(images), tol=1e-5)
        both, again = ours.train()(images, need_weights=True)
        plain = ours(images)
    check.check_close(again, attn)
    assert isinstance(both, tuple) and isinstance(plain, tuple)
    for got, expected in zip(both, plain, strict=True):
        check.check_close(got, expected, tol=1e-5)


# --- vit-pytorch's wrapper ---


def wrapped(teacher, **teaching):
    """vit-pytorch's student with a teacher, and our student with a copy of its weights."""
    torch.manual_seed(1)
    sizes = dict(image_size=32, patch_size=8, num_classes=7, dim=24, depth=2, heads=3, mlp_dim=96, dim_head=8)
    wrapper = DistillWrapper(student=DistillableViT(**sizes), teacher=teacher, **teaching)
    assert isinstance(wrapper.distill_mlp[0], nn.Identity)
    student = DistilledViT(replace(PHOTOS, qkv_bias=False, norm_eps=1e-5))
    student.patch_embed = conversion.VitPytorchPatchEmbed(8, 3, 24)
    state = as_ours(wrapper, lambda p: p.detach())
    first, patches = state["pos_embed"].tensor_split([1], dim=1)
    state["pos_embed"] = torch.cat([first, torch.zeros(1, 1, 24), patches], dim=1)  # its token has no position
    return wrapper, conversion.load_into(student, state)


def as_ours(wrapper, read):
    """What `read` reads off each parameter of a wrapper, by our names; positions without the second token's."""
    state = conversion.from_vit_pytorch({name: read(p) for name, p in wrapper.student.named_parameters()})
    state["dist_token"] = read(wrapper.distillation_token)[None]
    last = wrapper.distill_mlp[1]
    return state | {"head_dist.weight": read(last.weight), "head_dist.bias": read(last.bias)}


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_loss_and_gradients_are_those_of_vit_pytorchs_wrapper(hard):
    teacher, images, labels = batch_norm_teacher(3, 7).eval(), draw(5, 3, 32, 32), torch.arange(5)
    wrapper, student = wrapped(teacher, hard=hard, temperature=3.0, alpha=0.3)
    wrapper.train()
    teacher.eval()  # after train(): see the next test
    expected = wrapper(images, labels)
    expected.backward()
    objective = Distillation(copy.deepcopy(teacher), "hard" if hard else "soft", weight=0.3, temperature=3.0)
    loss = objective(student.train()(images), images, labels)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5) and loss > 0.5
    got, wanted = {name: p.grad for name, p in student.named_parameters()}, as_ours(wrapper, lambda p: p.grad)
    own, positions = got["pos_embed"][:, 1:2], got["pos_embed"][:, [0, *range(2, 18)]]
    check.check_close(own, wanted["dist_token"], tol=1e-5)
    got["pos_embed"] = positions
    assert got.keys() == wanted.keys()
    for name, gradient in got.items():
        assert wanted[name].abs().max() > 1e-4, name
        check.check_close(gradient, wanted[name], tol=1e-5)


def test_the_trap_vit_pytorchs_train_takes_the_teacher_along_and_ours_does_not():
    images, labels = draw(5, 3, 32, 32, std=2.0) + 1, torch.arange(5)
    teacher, mine = batch_norm_teacher(3, 7).eval(), batch_norm_teacher(3, 7).eval()
    wrapper, student = wrapped(teacher)
    before = state_of(teacher)
    wrapper.train()
    assert teacher.training
    wrapper(images, labels)
    moved = (teacher.stages[1].running_mean - before["stages.1.running_mean"]).abs().max()
    assert moved > 1e-2, "it changes while it teaches"
    with torch.no_grad():
        noisy, calm = teacher(images), mine(images)
    assert (noisy - calm).abs().max() > 0.1, "and its targets depend on the batch"

    objective = Distillation(mine)
    mine.train()
    objective(student.train()(images), images, labels)
    assert same(before, state_of(mine)) and torch.equal(objective.ask(images), calm)
