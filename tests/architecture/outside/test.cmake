# cmake -DPROGRAM=PATH -DWORK=DIR -P test.cmake
# What a user's operator and mixer get from heddle's commands: gradcheck, benchmarks, run-layer, training. And what the
# program finds of the files that came with the heddle that it links, though it lies elsewhere.
cmake_minimum_required(VERSION 3.25)

file(REMOVE_RECURSE "${WORK}")
file(MAKE_DIRECTORY "${WORK}")
configure_file("${CMAKE_CURRENT_LIST_DIR}/recall.yaml" "${WORK}/recall.yaml" COPYONLY)

# run(CODE ARGUMENTS...)    runs the program, which must exit with CODE; sets out and err
function(run code)
  execute_process(COMMAND "${PROGRAM}" ${ARGN} WORKING_DIRECTORY "${WORK}" RESULT_VARIABLE found
                  OUTPUT_VARIABLE out ERROR_VARIABLE err)
  list(JOIN ARGN " " command)
  if(NOT found EQUAL code)
    message(FATAL_ERROR "outside ${command}: exit code ${found}, expected ${code}\n${out}\n${err}")
  endif()
  message(STATUS "outside ${command}: ${found}")
  set(out "${out}" PARENT_SCOPE)
  set(err "${err}" PARENT_SCOPE)
endfunction()

# expect(TEXT REGEX...)
function(expect text)
  foreach(regex IN LISTS ARGN)
    if(NOT text MATCHES "${regex}")
      message(FATAL_ERROR "expected ${regex} in\n${text}")
    endif()
  endforeach()
endfunction()

# --- Gradients ---
run(0 gradcheck softcap --device cpu)
expect("${out}" "ok +x " "2 cases, 0 wrong")
run(0 gradcheck recall.yaml --device cpu)
expect("${out}" "ok +blocks.0.mixer.qkv.weight" "ok +blocks.1.mixer.out.weight")
run(2 gradcheck softcpa)
expect("${err}" "did you mean 'softcap'")

# --- Benchmarks: memory on the device meta, and a row of speed ---
run(0 bench softcap --quantity memory)
expect("${out}" "softcap .* fwd +memory +65536 +0.25[0-9]* MiB" "softcap .* bwd +memory +65536 +0.5[0-9]* MiB")
run(0 bench softcap --quantity speed --pass fwd --device cpu)
expect("${out}" "softcap .* fwd +speed +65536 +[0-9.]+ ms")

# --- One layer on given tensors ---
file(WRITE "${WORK}/softcap.yaml" "layer: softcap\noptions: {cap: 2}\n")
run(0 write-inputs in.safetensors)
run(0 run-layer softcap.yaml --inputs in.safetensors --outputs out.safetensors --device cpu)
run(0 check-outputs out.safetensors)
file(WRITE "${WORK}/unknown.yaml" "layer: softcap\noptions: {cap: 2, capp: 1}\n")
run(2 run-layer unknown.yaml --inputs in.safetensors --outputs none.safetensors --device cpu)
expect("${err}" "error: unknown.yaml:2:19: unknown key 'capp'.*did you mean 'cap'")

# --- Training. The second run goes on from step 3 of the first and ends with the same bits. ---
run(0 check-state)
run(0 train recall.yaml --out run --device cpu)
file(RENAME "${WORK}/run/checkpoints/step_6" "${WORK}/step_6")
run(0 train recall.yaml --out run --device cpu)
expect("${err}" "resumed from [^\n]*step_3")
file(SHA256 "${WORK}/step_6/model.safetensors" first)
file(SHA256 "${WORK}/run/checkpoints/step_6/model.safetensors" second)
if(NOT first STREQUAL second)
  message(FATAL_ERROR "the resumed run ended with other weights")
endif()
run(0 eval run --device cpu)
expect("${out}" "validation loss +[0-9.]+")
file(READ "${WORK}/run/config.yaml" resolved)
expect("${resolved}" "type: recall" "act: elu1")

run(2 train recall.yaml --set model.mixer.type=recal --out other --device cpu)
expect("${err}" "model.mixer.type: .*'recal'.*did you mean 'recall'")
run(2 train recall.yaml --set model.mixer.haeds=4 --out other --device cpu)
expect("${err}" "unknown key 'haeds' in model.mixer.*did you mean 'heads'")

# --- Files that came with heddle: suites, configs, the Python file of an export ---
run(0 bench srms_norm --config plain --n 8 --quantity memory)
expect("${out}" "srms_norm +plain +fwd +memory +8 ")
run(0 train configs/toy_copy.yaml --set trainer.steps=1 --out copy --device cpu --threads 1)
run(0 export copy --out exported)
expect("${out}" "modeling_heddle.py")
