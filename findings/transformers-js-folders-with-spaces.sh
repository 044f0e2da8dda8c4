#!/usr/bin/env bash
# @huggingface/transformers 4.3.2: with a space in its name, a folder under env.localModelPath is not found.
#
# One would expect that from_pretrained("my model") reads localModelPath + "my model", as from_pretrained("my-model")
# does. Seen: a name that could not be a repository's on the hub (a space, two hyphens or two dots in a row) is taken as
# a path of its own, relative to the working folder; localModelPath is left out, and the message that the file "was not
# found locally" does not say so. From the folder above, the same call works.
#
# Run: findings/transformers-js-folders-with-spaces.sh      (needs node; half a minute)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
echo '{}' > package.json
npm install --silent --ignore-scripts --no-audit --no-fund @huggingface/transformers@4.3.2
for name in my-model "my model" my--model; do
  mkdir -p "models/$name"
  echo '{"model_type": "llama", "hidden_size": 64}' > "models/$name/config.json"
done
cat > look.mjs << 'JS'
import {AutoConfig, env} from "@huggingface/transformers";
env.allowRemoteModels = false;
env.localModelPath = process.argv[2];
for (const name of ["my-model", "my model", "my--model"]) {
  try {
    console.log(`${name}: hidden_size ${(await AutoConfig.from_pretrained(name)).hidden_size}`);
  } catch (error) {
    console.log(`${name}: ${error.message}`);
  }
}
JS
echo "@huggingface/transformers $(node -p 'require("./node_modules/@huggingface/transformers/package.json").version')"
told=$(node look.mjs "$folder/models/")
echo "$told"
echo "in the folder above:"
cd models
above=$(node ../look.mjs "$folder/models/")
echo "$above"
missing='`local_files_only=true` or `env.allowRemoteModels=false` and file was not found locally at'
[[ $told == "my-model: hidden_size 64
my model: $missing \"my model/config.json\".
my--model: $missing \"my--model/config.json\"." ]] || { echo "the behaviour has changed"; exit 1; }
[[ $above == "my-model: hidden_size 64
my model: hidden_size 64
my--model: hidden_size 64" ]] || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   @huggingface/transformers 4.3.2
#   my-model: hidden_size 64
#   my model: `local_files_only=true` or `env.allowRemoteModels=false` and file was not found locally at "my model/config.json".
#   my--model: `local_files_only=true` or `env.allowRemoteModels=false` and file was not found locally at "my--model/config.json".
#   in the folder above:
#   my-model: hidden_size 64
#   my model: hidden_size 64
#   my--model: hidden_size 64
