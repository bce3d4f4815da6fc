public import API

/// Runs revert sagas, and their undo.
public final class RevertDriver: Sendable {
    let effects: SagaEffects

    public init(effects: SagaEffects) { self.effects = effects }

    /// Puts volumes back to what a snapshot holds; `dryRun` says what would be done. Throws ``APIFailure``: then the
    /// volumes hold what they held before.
    public func run(request: RevertRequest, report: any SagaReporting) async throws -> RevertResult {
        throw APIFailure(status: 501, code: "notImplemented", message: "The revert's driver is not there yet")
    }

    /// Ends what a former process left open: brings back what was stopped, whether the swap had happened or not.
    public func recoverAfterRestart() async -> [RecoveredSaga] { [] }
}
