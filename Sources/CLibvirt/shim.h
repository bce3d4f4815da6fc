#include <stddef.h>

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

/* libvirt takes callbacks of all kinds as one type, behind a cast that Swift cannot write. */
static inline int clibvirt_watch_lifecycle(
    virConnectPtr connection, virDomainPtr domain, virConnectDomainEventCallback callback, void *opaque,
    virFreeCallback release)
{
    return virConnectDomainEventRegisterAny(
        connection, domain, VIR_DOMAIN_EVENT_ID_LIFECYCLE, VIR_DOMAIN_EVENT_CALLBACK(callback), opaque, release);
}

/* `event`: VIR_DOMAIN_EVENT_ID_DEVICE_ADDED or _REMOVED, of all guests. */
static inline int clibvirt_watch_devices(
    virConnectPtr connection, int event, virConnectDomainEventDeviceAddedCallback callback, void *opaque,
    virFreeCallback release)
{
    return virConnectDomainEventRegisterAny(
        connection, NULL, event, VIR_DOMAIN_EVENT_CALLBACK(callback), opaque, release);
}

/* Block jobs of all guests: a disk may be on another image after one. */
static inline int clibvirt_watch_block_jobs(
    virConnectPtr connection, virConnectDomainEventBlockJobCallback callback, void *opaque, virFreeCallback release)
{
    return virConnectDomainEventRegisterAny(
        connection, NULL, VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, VIR_DOMAIN_EVENT_CALLBACK(callback), opaque, release);
}
