# cmake -DSOURCE=DIR -DTREE=DIR -DFORGETFUL=DIR -P edit.cmake
# Writes to TREE the files of the repository SOURCE that adding softcap edits, and to FORGETFUL a softcap.cc whose node keeps
# memory of its own, and which records the node although nothing is to be recorded.
cmake_minimum_required(VERSION 3.25)

# edit(FROM TO OLD NEW OLD NEW ...)
function(edit from to)
  file(READ "${from}" text)
  while(ARGN)
    list(POP_FRONT ARGN old new)
    string(FIND "${text}" "${old}" at)
    if(at EQUAL -1)
      message(FATAL_ERROR "${from} has no `${old}`: adapt tests/architecture/softcap/edit.cmake")
    endif()
    string(REPLACE "${old}" "${new}" text "${text}")
  endwhile()
  file(WRITE "${to}" "${text}")
endfunction()

edit("${SOURCE}/layers/operators/operators.h" "${TREE}/layers/operators/operators.h"
     "Operator activation_operator()" "Operator softcap_operator()\;\nOperator activation_operator()")
edit("${SOURCE}/layers/registry.cc" "${TREE}/layers/registry.cc"
     "registry.add(activation_operator())" "registry.add(softcap_operator())\;\n  registry.add(activation_operator())")
edit("${CMAKE_CURRENT_LIST_DIR}/layers/ops/softcap.cc" "${FORGETFUL}/layers/ops/softcap.cc"
     "if (!recorded) return y" "" ".saved_x = x.value"
     ".saved_x = Tensor::zeros(tape.context(), x.shape(), x.dtype())")
