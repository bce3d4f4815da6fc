import Glibc
import PluginKit
import Synchronization

/// Freezes and thaws the mounted file systems that lie on volumes.
struct FilesystemPlugin: Plugin {
    static let name = "filesystem"

    let identity = DescribeResult(name: name, version: "1.0", layer: .fileSystem)

    func discover(_ parameters: DiscoverParameters) async throws(PluginFailure) -> DiscoverResult {
        await OwnThread.run { Discovery(devices: parameters.devices).run() }
    }

    func preflight(_ parameters: PreflightParameters) async throws(PluginFailure) -> PreflightResult {
        await OwnThread.run {
            let guardian = FreezeGuard(
                mounts: .current(), stateDirectory: parameters.stateDirectory,
                protectedPaths: parameters.protectedPaths ?? [])
            return PreflightResult(findings: parameters.resources.flatMap { guardian.findings($0) })
        }
    }

    func quiesce(
        _ parameters: QuiesceParameters, lease: HoldLease
    ) async throws(PluginFailure) -> any PluginHold {
        try await OwnThread.run { () throws(PluginFailure) in try FreezeRound.run(parameters, lease: lease) }
    }

    func recover(_ parameters: RecoverParameters) async throws(PluginFailure) -> RecoverResult {
        await OwnThread.run { FreezeJournal.recover(stateDirectory: parameters.stateDirectory) }
    }

    func prepareRestore(_ parameters: RestoreParameters) async throws(PluginFailure) -> RestoreResult {
        try await OwnThread.run { () throws(PluginFailure) in try Unmounting(parameters).run() }
    }

    func finishRestore(_ parameters: RestoreParameters) async throws(PluginFailure) -> RestoreResult {
        try await OwnThread.run { () throws(PluginFailure) in try Mounting(parameters).run() }
    }

    /// Not before the last freeze has come back from the kernel: nobody else could undo it.
    func settle() async {
        while FreezesUnderWay.count.withLock({ $0 }) > 0 { try? await Task.sleep(for: .milliseconds(20)) }
    }
}
