import CLibvirt
import Glibc
import PluginKit

// What a restore does to guests and secrets. Every call blocks its thread.

extension Hypervisor {
    /// Nil where there is none.
    func find(uuid: String) -> Guest? { try? guest(uuid: uuid) }

    func find(name: String) throws(LibvirtError) -> Guest? {
        try guests().first { $0.name == name }
    }

    /// Defines a guest, or changes the definition of the one with this UUID.
    func define(_ text: String) throws(LibvirtError) {
        guard let domain = with({ virDomainDefineXMLFlags($0, text, 0) }) else { throw LibvirtError.last }
        virDomainFree(domain)
    }

    /// Starts a guest from its memory image, which holds the definition that it ran with.
    func restore(memory path: String) throws(LibvirtError) {
        let flags = UInt32(VIR_DOMAIN_SAVE_RUNNING.rawValue)
        guard with({ virDomainRestoreFlags($0, path, nil, flags) }) == 0 else { throw LibvirtError.last }
    }

    /// Keeps a CHAP secret under `usage`, for disks that name it.
    func keepSecret(usage: String, value: String) throws(LibvirtError) {
        let text =
            "<secret ephemeral='no' private='yes'><description>Stillpoint: \(usage)</description>"
            + "<usage type='iscsi'><target>\(usage)</target></usage></secret>"
        guard let secret = with({ virSecretDefineXML($0, text, 0) }) else { throw LibvirtError.last }
        defer { virSecretFree(secret) }
        let bytes = Array(value.utf8)
        guard virSecretSetValue(secret, bytes, bytes.count, 0) == 0 else { throw LibvirtError.last }
    }

    func forgetSecret(usage: String) {
        guard
            let secret = with({ virSecretLookupByUsage($0, Int32(VIR_SECRET_USAGE_TYPE_ISCSI.rawValue), usage) })
        else { return }
        virSecretUndefine(secret)
        virSecretFree(secret)
    }
}

extension Guest {
    var hasSavedState: Bool { with { virDomainHasManagedSaveImage($0, 0) } == 1 }

    func start() throws(LibvirtError) {
        guard with({ virDomainCreate($0) }) == 0 else { throw LibvirtError.last }
    }

    func setStartsAlone(_ value: Bool) { _ = with { virDomainSetAutostart($0, value ? 1 : 0) } }

    func destroy() throws(LibvirtError) {
        guard with({ virDomainDestroy($0) }) == 0 else { throw LibvirtError.last }
    }

    /// Forgets the definition.
    ///
    /// - Parameter withFiles: removes the files of UEFI variables and of the TPM, too; else they stay.
    func undefine(withFiles: Bool) throws(LibvirtError) {
        let flags =
            withFiles
            ? UInt32(VIR_DOMAIN_UNDEFINE_NVRAM.rawValue | VIR_DOMAIN_UNDEFINE_TPM.rawValue)
            : UInt32(VIR_DOMAIN_UNDEFINE_KEEP_NVRAM.rawValue | VIR_DOMAIN_UNDEFINE_KEEP_TPM.rawValue)
        guard with({ virDomainUndefineFlags($0, flags) }) == 0 else { throw LibvirtError.last }
    }

    private static let askAgainSeconds = 10.0

    /// Asks the guest to shut down, and pulls its plug when it has not after `seconds`.
    ///
    /// - Returns: whether it shut down by itself.
    func stop(withinSeconds seconds: Double) throws(LibvirtError) -> Bool {
        let flags = UInt32(
            VIR_DOMAIN_SHUTDOWN_GUEST_AGENT.rawValue | VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN.rawValue)
        var isAsked = (try? state().state) == .running && with { virDomainShutdownFlags($0, flags) } == 0
        let deadline = MonotonicInstant.now.advanced(bySeconds: seconds)
        var askAgainAt = MonotonicInstant.now.advanced(bySeconds: Self.askAgainSeconds)
        while isAsked, deadline > .now {
            if try state().state == .off { return true }
            usleep(100_000)
            guard askAgainAt <= .now else { continue }
            // One that is only booting does not hear the first time.
            isAsked = with { virDomainShutdownFlags($0, flags) } == 0 || (try? state().state) == .running
            askAgainAt = .now.advanced(bySeconds: Self.askAgainSeconds)
        }
        // Gone by itself in this moment is as good.
        do throws(LibvirtError) { try destroy() } catch { guard try state().state == .off else { throw error } }
        return false
    }
}
