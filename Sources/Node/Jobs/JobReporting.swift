import API

/// A saga tells its job what it does. The calls return at once: nothing here may lengthen a quiet window.
extension JobHandle: SagaReporting {
    var jobID: String { id }

    func stepBegan(_ name: String, detail: String?) async { step(name, detail: detail) }

    func stepSucceeded(_ name: String, detail: String?) async { succeedStep(name, detail: detail) }

    func stepFailed(_ name: String, detail: String?) async { failStep(name, detail: detail ?? "failed") }

    func stepCompensated(_ name: String, detail: String?) async { compensateStep(name, detail: detail) }
}
