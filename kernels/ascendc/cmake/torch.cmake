# libloopmoe_ascendc.so: the kernels and their torch bindings; torch.ops.load_library loads it.
find_package(Python3 REQUIRED COMPONENTS Interpreter Development.Module)
function(loopmoe_folder_of module result)
    execute_process(
        COMMAND ${Python3_EXECUTABLE} -c
                "import importlib.util as u; print(u.find_spec('${module}').submodule_search_locations[0])"
        OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
    if(failed)
        message(FATAL_ERROR "${Python3_EXECUTABLE} has no ${module}: install it, or give its Python "
                            "as -DPython3_EXECUTABLE=")
    endif()
    set(${result} ${folder} PARENT_SCOPE)
endfunction()
loopmoe_folder_of(torch TORCH_FOLDER)
loopmoe_folder_of(torch_npu TORCH_NPU_FOLDER)

# A launcher of one signature per kernel, in the form that this CANN launches kernels.
get_property(kernels GLOBAL PROPERTY LOOPMOE_KERNELS)
get_property(bindings GLOBAL PROPERTY LOOPMOE_BINDINGS)
set(kernel_files)
set(launchers)
foreach(name ${kernels})
    get_property(folder GLOBAL PROPERTY LOOPMOE_FOLDER_${name})
    get_filename_component(KERNEL_FILE ${LOOPMOE_KERNELS_ROOT}/${folder}/${name}.cpp ABSOLUTE)
    set(KERNEL loopmoe_${name})
    file(READ ${KERNEL_FILE} text)
    string(REGEX MATCH "void ${KERNEL}\\(([^)]*)\\)" signature "${text}")
    string(REGEX MATCHALL "GM_ADDR" parameters "${CMAKE_MATCH_1}")
    list(LENGTH parameters count)
    if(count EQUAL 0)
        message(FATAL_ERROR "${KERNEL_FILE} defines no ${KERNEL}(GM_ADDR ...)")
    endif()
    set(ARGUMENTS)
    math(EXPR last "${count} - 1")
    foreach(i RANGE ${last})
        list(APPEND ARGUMENTS "static_cast<uint8_t *>(arguments[${i}])")
    endforeach()
    list(JOIN ARGUMENTS ", " ARGUMENTS)
    if(ASC_FOUND)
        set(launcher ${CMAKE_CURRENT_BINARY_DIR}/${name}.asc)
        configure_file(launch.asc.in ${launcher} @ONLY)
    else()
        set(launcher ${CMAKE_CURRENT_BINARY_DIR}/${name}_launch.cpp)
        configure_file(launch.cpp.in ${launcher} @ONLY)
        list(APPEND kernel_files ${KERNEL_FILE})
    endif()
    list(APPEND launchers ${launcher})
endforeach()

add_library(loopmoe_ascendc SHARED ${bindings} ${launchers})
if(ASC_FOUND)
    target_compile_options(
        loopmoe_ascendc PRIVATE $<$<COMPILE_LANGUAGE:ASC>:--npu-arch=${LOOPMOE_ARCHITECTURE}>)
else()
    if(NOT LOOPMOE_CANN_CMAKE)
        message(FATAL_ERROR "no ascendc_kernel_cmake under ${ASCEND_CANN_PACKAGE_PATH}")
    endif()
    set(RUN_MODE npu)
    include(${LOOPMOE_CANN_CMAKE}/ascendc.cmake)
    ascendc_library(loopmoe_kernels_npu STATIC ${kernel_files})
    ascendc_compile_definitions(loopmoe_kernels_npu PRIVATE -DHAVE_WORKSPACE -DHAVE_TILING)
    target_link_libraries(loopmoe_ascendc PRIVATE loopmoe_kernels_npu)
endif()
target_include_directories(
    loopmoe_ascendc SYSTEM
    PRIVATE ${TORCH_FOLDER}/include ${TORCH_FOLDER}/include/torch/csrc/api/include
            ${TORCH_NPU_FOLDER}/include ${ASCEND_CANN_PACKAGE_PATH}/include
            ${Python3_INCLUDE_DIRS})
target_link_directories(
    loopmoe_ascendc
    PRIVATE ${TORCH_FOLDER}/lib ${TORCH_NPU_FOLDER}/lib ${ASCEND_CANN_PACKAGE_PATH}/lib64)
target_link_libraries(
    loopmoe_ascendc PRIVATE torch torch_cpu c10 torch_npu tiling_api platform register ascendcl)
install(TARGETS loopmoe_ascendc LIBRARY DESTINATION .)
