#!/usr/bin/env bash
# Runs the tests with the oldest versions that hf_condense supports, in an environment of its own.
#
#     bash tests/oldest.sh [FOLDER OF THE ENVIRONMENT] [ARGUMENTS OF PYTEST ...]
#
# PYTHON names the interpreter; by default it is the oldest one that runs. The environment is kept if a folder is given.
set -euo pipefail

python=${PYTHON:-}
for name in python3.10 python3.11 python3; do
  # The name is run and not only looked up, because version managers put names on the path that lead nowhere.
  if [ -z "$python" ] && "$name" -c "" 2>/dev/null; then python=$name; fi
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ $# -gt 0 ]; then
  place=$1
  shift
else
  place=$(mktemp -d)
  trap 'rm -rf "$place"' EXIT
fi

# datasets 4.0, torch 2.6 and torchvision 0.21 set no upper bound for numpy, pandas, pyarrow and pillow, so these are held
# to versions of the same age. Of transformers, which the tests need, only this version takes huggingface-hub 1.0.
"${python:?none found; set PYTHON}" -m venv "$place"
"$place/bin/pip" install \
  "torch==2.6.*" "torchvision==0.21.*" "datasets==4.0.*" "huggingface-hub==1.0.*" "safetensors==0.4.3" \
  "accelerate==1.0.*" "click==8.1.*" "numpy<2.3" "pandas<3" "pyarrow<22" "pillow<11.3" \
  "transformers==5.0.0rc0" --editable "$root[test]"
"$place/bin/pip" check

cd "$root"
# The Trainer of this transformers needs a later accelerate.
"$place/bin/python" -m pytest -p no:cacheprovider -n 2 --dist loadfile \
  --deselect "tests/test_examples.py::test_example_runs[soft_labels.py]" \
  --deselect tests/test_examples.py::test_trainer_trains_or_says_what_is_missing "$@"
