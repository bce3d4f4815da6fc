import PluginKit

/// One call of one executable.
struct HookRun {
    enum Phase: String {
        case preflight
        case quiesce
        case unquiesce
        /// The unquiesce after the death of the plug-in that quiesced.
        case recover
    }

    private let hook: Hook
    private let environment: [String: String]

    init(_ hook: Hook, _ phase: Phase, volumes: [String], holdID: String?) {
        self.hook = hook
        var environment = Command.cleanEnvironment
        environment.merge(hook.environment ?? [:]) { $1 }
        environment["STILLPOINT_HOOK"] = hook.name
        environment["STILLPOINT_PHASE"] = phase.rawValue
        environment["STILLPOINT_VOLUMES"] = volumes.joined(separator: " ")
        environment["STILLPOINT_HOLD_ID"] = holdID
        self.environment = environment
    }

    /// Blocks. Killed with all its children when it takes too long.
    func run(
        _ arguments: [String], timeoutSeconds: Double, shouldStop: () -> Bool = { false }
    ) throws(PluginFailure) -> Command.Outcome {
        try ExecutableCheck.check(arguments[0])
        var command = Command(arguments, environment: environment, timeoutSeconds: timeoutSeconds)
        // A quiesce that went on after our death would come after the recovery's unquiesce.
        command.diesWithUs = true
        return try command.run(shouldStop: shouldStop)
    }
}

/// What was started and what was undone. It holds the whole hook: the configuration may be another one at recovery.
struct HookRecord: Codable, Sendable {
    enum Step: String, Codable { case started, released }

    var step: Step
    var hook: Hook
    var volumes: [String]
}

struct HookMember: Sendable {
    var hook: Hook
    var volumes: [String]

    func record(_ step: HookRecord.Step) -> HookRecord { HookRecord(step: step, hook: hook, volumes: volumes) }
}

enum HookRecovery {
    /// Runs the unquiesce of what dead processes of the plug-in had started to quiesce, in reverse.
    static func run(stateDirectory: String) -> RecoverResult {
        var result = RecoverResult(released: [])
        for journal in HoldJournal<HookRecord>.abandoned(stateDirectory: stateDirectory, plugin: HookPlugin.name) {
            var open: [HookRecord] = []
            for record in journal.entries() {
                switch record.step {
                case .started: open.append(record)
                case .released: open.removeAll { $0.hook.name == record.hook.name }
                }
            }
            var isComplete = true
            for record in open.reversed() {
                let run = HookRun(record.hook, .recover, volumes: record.volumes, holdID: journal.holdID)
                do throws(PluginFailure) {
                    let outcome = try run.run(record.hook.unquiesce, timeoutSeconds: record.hook.timeout)
                    if outcome.isSuccess {
                        result.released.append(record.hook.resourceID)
                        try journal.append(HookRecord(step: .released, hook: record.hook, volumes: record.volumes))
                    } else {
                        isComplete = false
                        result.failures.append("The unquiesce of hook \(record.hook.name) \(outcome.explanation)")
                    }
                } catch {
                    isComplete = false
                    result.failures.append("The unquiesce of hook \(record.hook.name) was not run: \(error)")
                }
            }
            // Kept otherwise: the next recovery runs what failed once more.
            if isComplete { journal.remove() }
        }
        result.failures += HoldJournal<HookRecord>.unrecoverable(
            stateDirectory: stateDirectory, plugin: HookPlugin.name)
        return result
    }
}
