#!/usr/bin/env bash
# Everything that needs a GPU, in one command within 9 minutes, offline:
#
#     benchmarks/gpu_check.sh [FOLDER]        logs and gpu_check.json go there; default build/gpu_check
#
# Builds the extension for this GPU only, runs the tests marked `gpu`, compute-sanitizer on the small
# shapes, and every benchmark. Each stage has its own time limit and the next one runs whatever
# became of it; the last lines are a table. Exits with 1 if a stage failed.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-build/gpu_check}")
mkdir -p "$out"
: > "$out/stages.tsv"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
deadline=$((SECONDS + 510)) # leaves 30 s for the summary

# stage NAME SECONDS COMMAND...: runs it under its limit, or what is left of the whole; keeps its log.
stage() {
  local name=$1 limit=$2 start=$SECONDS left=$((deadline - SECONDS)) status
  shift 2
  if ((left < limit)); then limit=$left; fi
  if ((limit < 5)); then
    status=124
    echo "no time was left for it" > "$out/$name.log"
  else
    timeout --kill-after=5 "$limit" "$@" > "$out/$name.log" 2>&1
    status=$?
  fi
  printf '%s\t%s\t%s\n' "$name" "$status" $((SECONDS - start)) >> "$out/stages.tsv"
  echo "$name: exit status $status after $((SECONDS - start)) s, $(tail -n 1 "$out/$name.log")"
}

tests=(python3 -m pytest -q -p no:cacheprovider tests)
arch=$(python3 -c 'import torch
major, minor = torch.cuda.get_device_capability()
print(f"{major}.{minor}" + "a" * (major == 9))') || { echo "no CUDA device that torch can use"; exit 1; }

stage build 120 env TORCH_CUDA_ARCH_LIST="$arch" python3 setup.py build_ext --inplace
stage tests 120 "${tests[@]}" -m gpu
for tool in memcheck racecheck; do
  stage "$tool" 45 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool "$tool" --error-exitcode 9 "${tests[@]}" -m "gpu and sanitize"
done
benches=(benchmarks/bench_*.py)
for i in "${!benches[@]}"; do # what is left, in equal parts
  share=$(((deadline - SECONDS) / (${#benches[@]} - i)))
  stage "$(basename "${benches[i]}" .py)" "$share" \
    python3 -m pytest "${benches[i]}" --benchmark-only -q -p no:cacheprovider
done

timeout 30 python3 benchmarks/gpu_summary.py "$out"
