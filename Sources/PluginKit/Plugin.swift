/// What a plug-in written in Swift gives; `PluginMain.run` does the rest of the contract for it.
///
/// The methods are called concurrently. They must not block the thread they are called on: see `OwnThread`.
public protocol Plugin: Sendable {
    var identity: DescribeResult { get }

    func discover(_ parameters: DiscoverParameters) async throws(PluginFailure) -> DiscoverResult

    func preflight(_ parameters: PreflightParameters) async throws(PluginFailure) -> PreflightResult

    /// Brings all resources to rest, or none: what it held already it has released when it throws. It looks at
    /// `lease.isWanted` between steps, and gives up when that is false.
    func quiesce(_ parameters: QuiesceParameters, lease: HoldLease) async throws(PluginFailure) -> any PluginHold

    /// Releases what a dead process of this plug-in left quiesced, and nothing else.
    func recover(_ parameters: RecoverParameters) async throws(PluginFailure) -> RecoverResult

    func prepareRestore(_ parameters: RestoreParameters) async throws(PluginFailure) -> RestoreResult

    func finishRestore(_ parameters: RestoreParameters) async throws(PluginFailure) -> RestoreResult

    /// Returns once it is watching, and calls `onChange` from then on, with a sentence, whenever `discover` would give
    /// another answer. Only for a plug-in whose `identity` says so.
    func watch(
        _ parameters: WatchParameters, onChange: @escaping @Sendable (String) -> Void
    ) async throws(PluginFailure)

    /// Restores one resource without touching what else lies on its volumes.
    func restoreResource(_ parameters: ResourceRestoreParameters) async throws(PluginFailure) -> JSONValue

    /// Called at the end, after everything is released: returns when nothing is under way any more that this process
    /// still has to undo.
    func settle() async
}

extension Plugin {
    public func watch(
        _ parameters: WatchParameters, onChange: @escaping @Sendable (String) -> Void
    ) async throws(PluginFailure) {
        throw PluginFailure(.notSupported, "This plug-in does not watch")
    }

    public func settle() async {}

    public func restoreResource(_ parameters: ResourceRestoreParameters) async throws(PluginFailure) -> JSONValue {
        throw PluginFailure(.notSupported, "\(identity.name) restores whole volumes only")
    }
}

/// Resources at rest.
public protocol PluginHold: Sendable {
    var members: [QuiesceResult.Member] { get }

    /// Lets them go, whatever it takes, and says of each whether it can prove that it was held until now. Called once.
    func release(_ reason: ReleaseReason) async -> [UnquiesceResult.Member]
}

public enum ReleaseReason: String, Sendable {
    case requested
    case leaseEnded
    case inputClosed
    case terminated

    /// Nil where the release was asked for.
    var failure: String? {
        switch self {
        case .requested: nil
        case .leaseEnded: "The lease ended before the release was asked for"
        case .inputClosed: "The agent went away before it asked for the release"
        case .terminated: "The plug-in was told to end before the release was asked for"
        }
    }
}
