# A custom operator package (.run): what aclnn, the graph engine and other frameworks can call.
if(NOT ASC_FOUND)
    message(FATAL_ERROR "an operator package needs CANN's CMake package ASC: none under "
                        "${ASCEND_CANN_PACKAGE_PATH}; LOOPMOE_PRODUCT=torch builds without it")
endif()
get_property(hosts GLOBAL PROPERTY LOOPMOE_HOSTS)
get_property(kernels GLOBAL PROPERTY LOOPMOE_KERNELS)
set(generated ${CMAKE_BINARY_DIR}/autogen)
set(ASCEND_COMPUTE_UNIT ${LOOPMOE_COMPUTE_UNITS})

npu_op_package(loopmoe TYPE RUN CONFIG INSTALL_PATH ${CMAKE_BINARY_DIR}/)
npu_op_code_gen(SRC ${hosts} PACKAGE loopmoe OUT_DIR ${generated})

file(GLOB aclnn ${generated}/aclnn_*.cpp)
file(GLOB prototypes ${generated}/op_proto.cc ${generated}/group_op_proto/*.cc)
file(GLOB fallbacks ${generated}/fallback_*.cpp)
set_source_files_properties(${aclnn} ${prototypes} ${fallbacks} PROPERTIES GENERATED TRUE)
npu_op_library(cust_opapi ACLNN ${aclnn})
npu_op_library(cust_op_proto GRAPH ${hosts} ${prototypes})
npu_op_library(cust_optiling TILING ${hosts} ${fallbacks})
foreach(library cust_opapi cust_op_proto cust_optiling)
    target_compile_options(${library} PRIVATE -fvisibility=hidden)
endforeach()

foreach(name ${kernels})
    get_property(folder GLOBAL PROPERTY LOOPMOE_FOLDER_${name})
    # combine_grad -> LoopmoeCombineGrad
    string(REPLACE "_" ";" words ${name})
    set(type Loopmoe)
    foreach(word ${words})
        string(SUBSTRING ${word} 0 1 first)
        string(SUBSTRING ${word} 1 -1 rest)
        string(TOUPPER ${first} first)
        string(APPEND type ${first}${rest})
    endforeach()
    npu_op_kernel_sources(
        ascendc_kernels OP_TYPE ${type} KERNEL_DIR ${folder} KERNEL_FILE ${name}.cpp)
endforeach()
# The root of all operations: kernels include their tiling and common headers by relative paths.
npu_op_kernel_library(
    ascendc_kernels SRC_BASE ${LOOPMOE_KERNELS_ROOT}/ TILING_LIBRARY cust_optiling)
npu_op_package_add(loopmoe LIBRARY cust_optiling cust_opapi cust_op_proto ascendc_kernels)
