// A device that is current for as long as a launch takes.
#pragma once

#include <cuda_runtime.h>

namespace ligo::cuda {

// Makes a device current and, when it goes, what was. torch has a runtime of its own, which knows nothing of
// what this one makes current; but the driver has one context for a thread, whichever runtime set it. So it
// is the driver that is asked what was current, and told.
class Current {
   public:
    explicit Current(int device) {
        static const Driver driver;
        get_ = driver.get;
        set_ = driver.set;
        error_ = driver.error;
        if (error_ == cudaSuccess) error_ = cudaError_t(get_(&before_));
        if (error_ != cudaSuccess) return;
        error_ = cudaSetDevice(device);
        void* now = before_;
        changed_ = get_(&now) == 0 && now != before_;
    }
    ~Current() {
        if (changed_) set_(before_);
    }
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

    cudaError_t error() const { return error_; }

   private:
    using Get = int (*)(void**);
    using Set = int (*)(void*);

    struct Driver {
        Driver() {
            error = find("cuCtxGetCurrent", get);
            if (error == cudaSuccess) error = find("cuCtxSetCurrent", set);
        }
        template <class F>
        static cudaError_t find(const char* name, F& function) {
            void* found = nullptr;
            const cudaError_t error =
                cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault);
            function = reinterpret_cast<F>(found);
            return error != cudaSuccess || found ? error : cudaErrorSymbolNotFound;
        }
        Get get = nullptr;
        Set set = nullptr;
        cudaError_t error = cudaSuccess;
    };

    Get get_ = nullptr;
    Set set_ = nullptr;
    void* before_ = nullptr;  // a CUcontext; none where the thread has none yet
    cudaError_t error_ = cudaSuccess;
    bool changed_ = false;
};

}  // namespace ligo::cuda
