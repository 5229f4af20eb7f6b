"""Learns to read handwritten digits and writes how well it does to out/result.json. Runs inside a donor's sandbox."""

import json
import os
from pathlib import Path

from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

trees = int(os.environ.get("TREES", "100"))
images, digits = load_digits(return_X_y=True)
train_images, test_images, train_digits, test_digits = train_test_split(
    images, digits, test_size=0.25, random_state=7, stratify=digits
)
print(f"{len(train_images)} images to learn from, {len(test_images)} to test on, {trees} trees", flush=True)
model = RandomForestClassifier(n_estimators=trees, random_state=7).fit(train_images, train_digits)
accuracy = model.score(test_images, test_digits)
print(f"accuracy {accuracy:.4f}", flush=True)
Path("out/result.json").write_text(json.dumps({"accuracy": accuracy, "trees": trees}) + "\n")
