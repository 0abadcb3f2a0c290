#!/usr/bin/env bash
# scikit-learn 1.9.1, numpy 2.4.6, Python 3.11
#
# train_test_split(..., stratify=labels) may leave a class out of the test part, and says nothing.
#
# It refuses a class with one member ("the minimum number of groups for any class cannot be less than 2") and a test
# part smaller than the number of classes, so one would swear that what it accepts has every class on both sides. It
# has not: with 1,000 images of one class and 2 of the other, a fifth for the test, all 2 land in the training part for
# every seed, because 2 x 0.2 rounds to 0. The two refusals look like a promise and are none. StratifiedKFold warns
# about the same labels; train_test_split does not. Whoever splits a folder with a rare class has to count afterwards.
#
# Output seen:
#   seeds 0..19: test images of the rare class {0}, warnings 0
#   8 of 108, 3 for the test: rare class 0, warnings 0
#   one member: ValueError
#   StratifiedKFold(5): warnings 1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet scikit-learn==1.9.1 numpy==2.4.6
env/bin/python - <<'PY'
import warnings

import numpy as np
from sklearn.model_selection import StratifiedKFold, train_test_split


def rare_in_test(common, rare, size, seed):
    labels = np.repeat([0, 1], [common, rare])
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        test = train_test_split(labels, test_size=size, stratify=labels, random_state=seed)[1]
    return int((test == 1).sum()), len(heard)


seen = [rare_in_test(1000, 2, 0.2, seed) for seed in range(20)]
print(f"seeds 0..19: test images of the rare class {({n for n, _ in seen})}, warnings {sum(w for _, w in seen)}")
assert set(seen) == {(0, 0)}, "every class has a test image now, or a warning"
few = rare_in_test(100, 8, 3, 0)
print(f"8 of 108, 3 for the test: rare class {few[0]}, warnings {few[1]}")
assert few == (0, 0)
try:
    rare_in_test(1000, 1, 0.2, 0)
except ValueError:
    print("one member: ValueError")
else:
    raise SystemExit("one member is accepted now")
labels = np.repeat([0, 1], [1000, 2])
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    list(StratifiedKFold(5).split(labels, labels))
print(f"StratifiedKFold(5): warnings {len(heard)}")
assert len(heard) == 1
PY
